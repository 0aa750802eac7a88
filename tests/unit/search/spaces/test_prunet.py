import itertools
import random

import pytest

from search import SearchError, spaces
from search.ops import output_shape
from search.spaces import prunet

SIZES = {
    "prunet": 3**2 * 24 * 65**2 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**4,
    "prunet-formula": 3**2 * 24 * 65 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**4,
    "prunet-table1": 3**2 * 24 * 65**2 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**5,
    "prunet-table5": 3**2 * 24 * 65 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**5,
}
PAPER = {
    "prunet": "1.110e+41",
    "prunet-formula": "1.707e+39",
    "prunet-table1": "4.982e+43",
    "prunet-table5": "7.665e+41",
}


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name):
    space = spaces.get(name)
    assert space.size() == SIZES[name]
    assert f"{space.size():.3e}" == PAPER[name]


def test_all_presets_for_imagenet_have_the_same_blocks():
    presets = [set(spaces.get(name).blocks()) for name in SIZES]
    assert all(blocks == presets[0] for blocks in presets)
    assert len(presets[0]) == 1 + 2 + 24 + 64 + 64 + 96 + 96 + 160 + 160 + 288 + 288 + 448 + 1


def test_a_stochastic_layer_has_four_multi_blocks_and_every_hidden_width():
    layer = next(layer for layer in spaces.get("prunet").layers if layer.name == "stage2_0")
    assert [(option.spec.attr("kernel"), option.spec.attr("se")) for option in layer.options] == [
        (3, 0),
        (3, 1),
        (5, 0),
        (5, 1),
    ]
    assert all(option.hidden == (32, 64, 96, 128, 160, 192) for option in layer.options)
    assert not layer.skippable


@pytest.mark.parametrize("name", prunet.names())
def test_every_choice_of_a_layer_fits_between_its_neighbours(name):
    space = spaces.get(name)
    shape = space.input_shape
    for layer in space.layers:
        ends = {(spec.width("c_in"), spec.attr("h"), spec.attr("w"), *output_shape(spec)) for spec in layer.blocks()}
        assert ends == {(*shape, *next(iter(ends))[3:])}
        assert layer.skippable == (next(iter(ends))[3:] == shape)
        shape = next(iter(ends))[3:]
    assert shape == (space.classes, 1, 1)


def test_the_full_and_the_smallest_network():
    space = spaces.get("prunet")
    full, smallest = space.network(), space.network(space.smallest())
    assert (len(full), len(smallest)) == (22, 7)
    assert all(spec.attr("kernel") == 5 and spec.attr("se") == 1 for spec in full if "irb" in spec.op)
    assert all(spec.width("hidden") == 8 * spec.width("c_in") for spec in full if "irb" in spec.op)
    assert all(
        (spec.attr("kernel"), spec.attr("se"), spec.width("hidden")) == (3, 0, 32)
        for spec in smallest
        if "irb" in spec.op
    )


def test_random_networks_are_of_the_space_and_of_many_depths():
    space, draw = spaces.get("prunet"), random.Random(0)
    blocks, networks = set(space.blocks()), [space.network(space.random(draw)) for _ in range(50)]
    assert all(blocks.issuperset(network) for network in networks)
    assert len({len(network) for network in networks}) > 3
    for network in networks:
        assert all(
            output_shape(a)[0] == b.width("c_in") and output_shape(a)[1] == b.attr("h")
            for a, b in itertools.pairwise(network)
        )
    assert space.network(space.random(random.Random(5))) == space.network(space.random(random.Random(5)))


def test_gpunet_1_is_a_network_of_the_default_space():
    """As Section 4.1.1 says: it is drawn by choosing one block a layer, and skipping one layer a stage."""
    network = spaces.get("gpunet-1").network()
    left = iter(network)
    block, skipped = next(left, None), []
    for layer in spaces.get("prunet").layers:
        if block in layer.blocks():
            block = next(left, None)
        else:
            assert layer.skippable, layer.name
            skipped.append(layer.name.partition("_")[0])
    assert block is None
    assert skipped == [f"stage{number}" for number in range(1, 7)]


def test_cifar():
    space = spaces.get("prunet-cifar")
    assert (space.input_shape, space.classes) == ((3, 32, 32), 10)
    assert space.network()[-1].attr("h") == 4
    assert len(space.blocks()) < 500
    assert space.parameters() < 2e6
    assert space.macs() < 320e6


def test_mini_is_searched_at_a_granularity_of_8():
    space = spaces.get("prunet-mini")
    assert (space.input_shape, space.classes, space.granularity) == ((3, 16, 16), 10, 8)
    assert {
        layer.name: (len(layer.options), len(layer.options[-1].hidden), layer.skippable) for layer in space.layers
    } == {
        "stem": (1, 0, False),
        "stage1_0": (2, 0, True),
        "stage2_0": (4, 16, False),
        "stage2_1": (4, 24, True),
        "stage2_2": (4, 24, True),
        "stage3_0": (4, 24, False),
        "stage3_1": (4, 48, True),
        "stage3_2": (4, 48, True),
        "tail": (1, 0, False),
    }
    assert space.size() == 3 * 64 * 97**2 * 96 * 193**2
    assert space.macs() < 25e6
    assert spaces.get("prunet-mini", resolution=32).input_shape == (3, 32, 32)


def test_imagewoof_searches_kernels_and_activations_of_table_5():
    space = spaces.get("prunet-imagewoof")
    assert (space.input_shape, space.classes, len(space.layers)) == ((3, 224, 224), 10, 1 + 2 + 2 + 3 + 2 + 5 + 6 + 1)
    kinds = {
        layer.name: [(option.spec.attr("act"), option.spec.attr("kernel")) for option in layer.options]
        for layer in space.layers
        if layer.name.endswith("_0")
    }
    conv, early = (
        [("relu", 3), ("relu", 5), ("relu", 7)],
        [("relu", 3), ("swish", 3), ("relu", 5), ("swish", 5), ("swish", 7)],
    )
    late = [("relu", 3), ("swish", 3), ("relu", 5), ("swish", 5), ("relu", 7)]
    assert kinds == {"stage1_0": conv, **{f"stage{number}_0": early if number < 5 else late for number in range(2, 7)}}
    assert [option.name for option in space.layers[1].options] == ["conv_k3", "conv_k5", "conv_k7"]
    assert [option.name for option in space.layers[3].options][:2] == ["fused_irb_relu_k3", "fused_irb_swish_k3"]
    blocks = [spec for spec in space.blocks() if "irb" in spec.op]
    assert all(spec.width("hidden") == 8 * spec.width("c_in") and not spec.attr("se") for spec in blocks)
    assert space.size() == 4**2 * 5**5 * 6**13


def test_classes_and_resolution_can_be_chosen():
    space = spaces.get("prunet", classes=100, resolution=224)
    assert (space.input_shape, space.classes) == ((3, 224, 224), 100)
    assert space.network()[-1].key == "tail(act=relu,h=7,w=7)[c_in=448,hidden=1280,c_out=100]"
    with pytest.raises(
        SearchError, match="prunet halves its input 5 times: the resolution must be at least 32, found 31"
    ):
        spaces.get("prunet", resolution=31)
    with pytest.raises(SearchError, match="at least 2 classes, found 0"):
        spaces.get("prunet-cifar", classes=0)
