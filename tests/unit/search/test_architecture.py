import msgspec
import pytest
import torch

import reparam
from latency import Device, Latency, Runtime
from search import Architecture, SearchError, load_architecture
from search.architecture import Preprocessing
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


@pytest.mark.parametrize(("field", "value"), [("schema", "architecture/0"), ("budget_us", "much"), ("colour", "red")])
def test_bad_files_are_refused(chosen, tmp_path, field, value):
    path = tmp_path / "architecture.json"
    path.write_bytes(msgspec.json.encode(msgspec.to_builtins(chosen) | {field: value}))
    with pytest.raises(SearchError, match=rf"architecture.json is damaged: .*{field}"):
        load_architecture(path)
