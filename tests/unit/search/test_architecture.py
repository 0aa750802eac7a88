import msgspec
import pytest
import torch

import reparam
from latency import Device, Latency, Runtime
from search import Architecture, SearchError, load_architecture
from search.architecture import ChosenLayer, Preprocessing
from search.files import to_json
from search.network import load_weights, save_weights


@pytest.fixture
def chosen(tiny) -> Architecture:
    return Architecture(
        space=tiny.name,
        granularity=tiny.granularity,
        input_shape=tiny.input_shape,
        classes=tiny.classes,
        layers=Architecture.choose(tiny, (8, 32, 16)),
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
    assert path.read_bytes().startswith(b'{\n  "schema": "architecture/1"')


def test_origin_and_blocks_are_those_of_the_space(chosen, tiny):
    assert chosen.origin() == tiny
    assert chosen.widths == (8, 32, 16)
    assert chosen.blocks() == tiny.network(tiny.choice((8, 32, 16)))


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
    shipped = reparam.squeeze(reparam.fuse(chosen.build()), x)
    assert [m.out_channels for m in shipped.modules() if isinstance(m, torch.nn.Conv2d)] == [8, 32, 16]
    counts = reparam.count(shipped, x)
    assert (counts.params, counts.macs) == (chosen.origin().parameters(chosen.blocks()), chosen.origin().macs(chosen.blocks()))


def test_unpruned_has_no_masks(chosen):
    assert not any(isinstance(module, reparam.ChannelMask) for module in chosen.unpruned().modules())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": 10**12}, "Expected `int` <= 16777216"),
        ({"classes": 3}, "it has 3 classes, and 2 labels"),
        ({"input_shape": [3, 10**6, 8]}, "Expected `int` <= 65536"),
        ({"input_shape": [3, 65_536, 65_536]}, "an input has 12,884,901,888 numbers, and at most 1,073,741,824 are built"),
        ({"budget_us": -1.0}, "Expected `float` > 0.0"),
        ({"table_sha256": "5"}, "Expected `str` matching regex"),
        ({"seed": 2**70}, "Expected `int` <= 9223372036854775807"),
        ({"predicted": {"us": -1.0, "low_us": 0.0, "high_us": 1.0, "source": "predicted"}}, "Expected `float` >= 0.0"),
        ({"preprocessing": {"size": [8, 8], "mean": [0, 0, 0], "std": [0, 1, 1]}}, "Expected `float` > 0.0"),
        ({"layers": ()}, "it has no layers, or two of one name"),
        ({"layers": [{}, {}]}, "it has no layers, or two of one name"),
        ({"layers": [{"width": 33, "of": 32}]}, "layer 'a' keeps 33 channels, and has 32"),
        ({"layers": [{"width": 0}]}, "Expected `int` >= 1"),
        ({"layers": [{"of": 2**24}, {"name": "b", "of": 2**24}]}, "its layers have up to .* weights, and at most 4,294,967,296 are built"),
    ],
)
def test_impossible_values_are_refused_before_anything_is_built(chosen, tmp_path, change, words):
    made = msgspec.to_builtins(chosen)
    layers = [{**made["layers"][0], "name": "a", **fields} for fields in change.get("layers", [])] if "layers" in change else made["layers"]
    path = tmp_path / "architecture.json"
    path.write_bytes(msgspec.json.encode(made | change | {"layers": layers}))
    with pytest.raises(SearchError, match=f"architecture.json is damaged: {words}"):
        load_architecture(path)


def test_layers_of_another_space_are_refused(chosen):
    group = ChosenLayer(name="layer9", op="group", kernel=None, stride=None, act=None, width=8, of=16)
    changed = msgspec.structs.replace(chosen, space="resnet20/widths", input_shape=(3, 32, 32), layers=(group,))
    with pytest.raises(SearchError, match="the architecture's layers are not those of the space resnet20/widths"):
        changed.blocks()


@pytest.mark.parametrize(("field", "value"), [("schema", "architecture/0"), ("budget_us", "much"), ("colour", "red")])
def test_bad_files_are_refused(chosen, tmp_path, field, value):
    path = tmp_path / "architecture.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(chosen) | {field: value}))
    with pytest.raises(SearchError, match=rf"architecture.json is damaged: .*{field}"):
        load_architecture(path)
