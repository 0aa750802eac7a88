import torch

import reparam
from search import spaces
from search.spaces import Chain, Layer


def test_network_halves_odd_resolutions_upwards_as_convolutions_do():
    space = Chain(
        name="odd",
        input_shape=(3, 9, 7),
        classes=5,
        layers=(Layer(name="a", width=8, stride=2), Layer(name="b", width=8)),
    )
    keys = [spec.key for spec in space.network(space.choice((8, 8)))]
    assert keys == [
        "conv(act=relu,h=9,kernel=3,stride=2,w=7)[c_in=3,c_out=8]",
        "conv(act=relu,h=5,kernel=3,stride=1,w=4)[c_in=8,c_out=8]",
        "head(h=5,w=4)[c_in=8,c_out=5]",
    ]


def test_counts_are_those_of_the_modules():
    space = spaces.get("repvgg-mini")
    network, x = space.module(), torch.zeros(1, *space.input_shape)
    trained, deployed = reparam.count(network, x), reparam.count(reparam.fuse(network, x), x)
    assert (space.parameters(deployed=False), space.macs(deployed=False)) == (trained.params, trained.macs)
    assert (space.parameters(), space.macs()) == (deployed.params, deployed.macs)
