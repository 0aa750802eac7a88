import torch
from torch import nn

from reparam import Counts, RepVGGBlock, count, fuse


def test_convolutions_and_linear_layers_are_counted():
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5, bias=False),
    )
    convolution, linear = 6 * 2 * 9, 6 * 16 * 5
    expected = Counts(params=convolution + 6 + 12 + linear, macs=convolution * 16 + linear)
    assert count(model, torch.randn(1, 4, 8, 8)) == expected
    assert count(model, torch.randn(3, 4, 8, 8)) == expected


def test_the_model_stays_as_it_was():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    mean = model[1].running_mean.clone()
    count(model, torch.randn(2, 1, 4, 4))
    assert model.training
    assert not model[0]._forward_hooks
    assert torch.equal(model[1].running_mean, mean)


def test_a_layer_that_is_used_twice_has_one_set_of_weights_and_two_of_macs():
    layer = nn.Linear(3, 3)
    assert count(nn.Sequential(layer, layer), torch.randn(1, 3)) == Counts(params=12, macs=18)


def repvgg_a0():
    widths = [48] * 2 + [48] * 1 + [96] * 4 + [192] * 14 + [1280]
    strides = [2, 2, 1, 2, 1, 1, 1, 2, *[1] * 13, 2]
    blocks = [
        RepVGGBlock(c_in, c_out, stride=stride)
        for c_in, c_out, stride in zip([3, *widths], widths, strides, strict=False)
    ]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1000))


def test_repvgg_a0_has_the_published_size():
    with torch.device("meta"):
        trained = repvgg_a0()
    assert count(trained, torch.empty(1, 3, 224, 224, device="meta")).params == 9_108_968
    deployed = fuse(repvgg_a0(), torch.zeros(1, 3, 32, 32))
    assert count(deployed.to("meta"), torch.empty(1, 3, 224, 224, device="meta")) == Counts(
        params=8_309_384, macs=1_361_451_008
    )
