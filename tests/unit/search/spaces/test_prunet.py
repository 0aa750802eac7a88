import itertools
import random

import pytest

from search import SearchError, spaces
from search.ops import output_shape

SIZES = {
    "prunet": 3**2 * 24 * 65**2 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**4,
    "prunet-formula": 3**2 * 24 * 65 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**4,
    "prunet-table1": 3**2 * 24 * 65**2 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**5,
    "prunet-table5": 3**2 * 24 * 65 * 64 * 97**2 * 96 * 161 * 160 * 289**4 * 288 * 449**5,
}
PAPER = {"prunet": "1.110e+41", "prunet-formula": "1.707e+39", "prunet-table1": "4.982e+43", "prunet-table5": "7.665e+41"}


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
    assert [(option.spec.attr("kernel"), option.spec.attr("se")) for option in layer.options] == [(3, 0), (3, 1), (5, 0), (5, 1)]
    assert all(option.hidden == (32, 64, 96, 128, 160, 192) for option in layer.options)
    assert not layer.skippable


@pytest.mark.parametrize("name", [*SIZES, "prunet-cifar"])
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
    assert all((spec.attr("kernel"), spec.attr("se"), spec.width("hidden")) == (3, 0, 32) for spec in smallest if "irb" in spec.op)


def test_random_networks_are_of_the_space_and_of_many_depths():
    space, draw = spaces.get("prunet"), random.Random(0)
    blocks, networks = set(space.blocks()), [space.network(space.random(draw)) for _ in range(50)]
    assert all(blocks.issuperset(network) for network in networks)
    assert len({len(network) for network in networks}) > 3
    for network in networks:
        assert all(output_shape(a)[0] == b.width("c_in") and output_shape(a)[1] == b.attr("h") for a, b in itertools.pairwise(network))
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


def test_classes_and_resolution_can_be_chosen():
    space = spaces.get("prunet", classes=100, resolution=224)
    assert (space.input_shape, space.classes) == ((3, 224, 224), 100)
    assert space.network()[-1].key == "tail(act=relu,h=7,w=7)[c_in=448,hidden=1280,c_out=100]"
    with pytest.raises(SearchError, match="prunet halves its input 5 times: the resolution must be at least 32, found 31"):
        spaces.get("prunet", resolution=31)
    with pytest.raises(SearchError, match="at least 2 classes, found 0"):
        spaces.get("prunet-cifar", classes=0)
