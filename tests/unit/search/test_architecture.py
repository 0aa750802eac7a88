import random

import msgspec
import pytest
import torch

import reparam
from latency import Device, Latency, Runtime
from search import Architecture, Choice, SearchError, load_architecture, spaces
from search.architecture import Preprocessing, keys
from search.files import to_json
from search.network import load_weights, save_weights


@pytest.fixture
def chosen(tiny) -> Architecture:
    return Architecture(
        space=tiny.record(),
        choice=tiny.choice((8, 32, 16)),
        blocks=keys(tiny, tiny.choice((8, 32, 16))),
        labels=("horizontal", "vertical"),
        preprocessing=Preprocessing(size=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        data="stripes",
        predicted=Latency(us=10.0, low_us=9.0, high_us=11.0, source="predicted"),
        budget_us=12.0,
        device=Device.cpu(),
        runtime=Runtime(name="onnxruntime", version="1.2.3"),
        table_sha256="5" * 64,
        method="pas",
        seed=0,
        options={"beta": 0.1, "cost": "latency"},
    )


def test_it_comes_back_from_disk_with_its_hash(chosen, tmp_path):
    path = tmp_path / "architecture.json"
    path.write_bytes(to_json(chosen))
    assert load_architecture(path) == chosen
    assert load_architecture(str(path)).sha256 == chosen.sha256
    assert path.read_bytes().startswith(b'{\n  "schema": "architecture/4"')


def test_origin_and_blocks_are_those_of_the_space(chosen, tiny):
    assert chosen.origin() == tiny
    assert chosen.choice == Choice(widths={"a": 8, "b": 32, "c": 16})
    assert [spec.key for spec in chosen.network()] == list(chosen.blocks)
    assert chosen.network() == tiny.network(tiny.choice((8, 32, 16)))


def test_build_takes_the_saved_weights_and_masks(chosen, tmp_path):
    torch.manual_seed(0)
    network = chosen.build().eval()
    network.masks.a.keep = torch.arange(32) % 2 == 1
    save_weights(network, tmp_path / "w.safetensors", {"architecture_sha256": chosen.sha256})
    again = chosen.build().eval()
    load_weights(again, tmp_path / "w.safetensors", {"architecture_sha256": chosen.sha256})
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(network(x), again(x))


def test_built_networks_fuse_and_squeeze_to_the_chosen_widths(chosen):
    x = torch.rand(1, *chosen.input_shape)
    shipped = reparam.squeeze(reparam.fuse(chosen.build(), x), x)
    assert [m.out_channels for m in shipped.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 32, 16]
    counts = reparam.count(shipped, x)
    assert (counts.params, counts.macs) == (
        chosen.origin().parameters(chosen.network()),
        chosen.origin().macs(chosen.network()),
    )


def test_unpruned_has_no_masks(chosen):
    assert not any(isinstance(module, reparam.ChannelMask) for module in chosen.unpruned().modules())


def space_of(**change):
    return {"space": change}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (space_of(classes=10**12), "Expected `int` <= 16777216"),
        (space_of(classes=3), "it has 3 classes but 2 labels"),
        (space_of(input_shape=[3, 10**6, 8]), "Expected `int` <= 65536"),
        (
            space_of(input_shape=[3, 65_536, 65_536]),
            "an input has 12,884,901,888 elements, at most 1,073,741,824 are supported",
        ),
        (space_of(granularity=0), "Expected `int` >= 1"),
        (space_of(layers=[{"name": "a"}]), "missing required field `width`"),
        (space_of(layers=[{"name": "a", "width": 0}]), "Expected `int` >= 1"),
        (space_of(layers=[{"name": "a", "width": 8, "stride": 0}]), "Expected `int` >= 1"),
        (space_of(kind="maze"), "the record of a space has the kind 'maze'"),
        ({"budget_us": -1.0}, "Expected `float` > 0.0"),
        ({"table_sha256": "5"}, "Expected `str` matching regex"),
        ({"seed": 2**70}, "Expected `int` <= 9223372036854775807"),
        ({"predicted": {"us": -1.0, "low_us": 0.0, "high_us": 1.0, "source": "predicted"}}, "Expected `float` >= 0.0"),
        ({"preprocessing": {"size": [8, 8], "mean": [0, 0, 0], "std": [0, 1, 1]}}, "Expected `float` > 0.0"),
        (
            {"choice": {"widths": {"a": 8, "b": 32}}},
            "tiny has the groups a, b, c: a choice has a width for each, found a=8, b=32",
        ),
        ({"choice": {"widths": {"a": 33, "b": 32, "c": 16}}}, "tiny: group a has 1 to 32 channels, found 33"),
        ({"choice": {"widths": {"a": 16, "b": 32, "c": 16}}}, "its blocks are not those of its choice"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_built(chosen, tmp_path, change, words):
    made = msgspec.to_builtins(chosen)
    path = tmp_path / "architecture.json"
    path.write_bytes(msgspec.json.encode(made | change | {"space": made["space"] | change.get("space", {})}))
    with pytest.raises(SearchError, match=f"architecture.json is damaged .*{words}"):
        load_architecture(path)


def test_a_network_of_gigabytes_is_refused(chosen):
    layers = tuple(spaces.Layer(name=name, width=2**24) for name in "ab")
    space = spaces.Chain(name="huge", input_shape=(3, 8, 8), classes=2, layers=layers)
    choice = space.choice((8, 8))
    with pytest.raises(ValueError, match=r"its space has up to .* weights, at most 4,294,967,296 are supported"):
        msgspec.structs.replace(chosen, space=space.record(), choice=choice, blocks=keys(space, choice))


@pytest.mark.parametrize("name", ["prunet-cifar", "nasbench201-small", "resnet20"])
def test_it_holds_a_network_of_any_space(chosen, tmp_path, name):
    space = spaces.get(name, classes=2)
    choice = space.random(random.Random(0))
    found = msgspec.structs.replace(chosen, space=space.record(), choice=choice, blocks=keys(space, choice))
    path = tmp_path / "architecture.json"
    path.write_bytes(to_json(found))
    again = load_architecture(path)
    assert (again, again.origin(), again.network()) == (found, space, space.network(choice))
    assert again.build()(torch.zeros(2, *space.input_shape)).shape == (2, 2)


@pytest.mark.parametrize(("field", "value"), [("schema", "architecture/0"), ("budget_us", "much"), ("colour", "red")])
def test_bad_files_are_refused(chosen, tmp_path, field, value):
    path = tmp_path / "architecture.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(chosen) | {field: value}))
    with pytest.raises(SearchError, match=rf"architecture.json is damaged .*{field}"):
        load_architecture(path)
