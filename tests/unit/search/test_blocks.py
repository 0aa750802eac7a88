import pytest
import torch

import reparam
from search import ops
from search.blocks import NORM_EPS, SqueezeExcite, deployed, trained, trained_as_repvgg

SPECS = {
    "conv": ops.conv((3, 9, 7), 24, kernel=5, stride=2, act="swish"),
    "conv of groups": ops.conv((6, 9, 7), 24, stride=2, groups=3),
    "stem": ops.stem((3, 21, 18), 8),
    "separable": ops.separable((8, 9, 8), 8, kernel=5, act="relu6"),
    "separable, strided": ops.separable((8, 9, 8), 12, stride=2),
    "basic": ops.residual((8, 9, 8), 8, hidden=12),
    "basic, strided": ops.residual((8, 9, 8), 12, hidden=10, stride=2),
    "bottleneck": ops.residual((16, 9, 8), 16, hidden=4, bottleneck=True),
    "bottleneck, strided": ops.residual((8, 9, 8), 16, hidden=4, stride=2, bottleneck=True),
    "head": ops.head((8, 5, 4), 10),
    "tail": ops.tail((8, 5, 4), 10, hidden=16),
    "irb": ops.inverted_residual((16, 8, 8), 16, hidden=32, kernel=5, act="swish"),
    "irb, strided, gated": ops.inverted_residual((16, 9, 8), 24, hidden=32, stride=2, se=True),
    "fused": ops.inverted_residual((16, 8, 8), 16, hidden=32, kernel=5, act="swish", se=True, fused=True),
    "preact": ops.preact((8, 9, 8), 12, kernel=3),
    "avg_pool": ops.avg_pool((8, 9, 8)),
    "add": ops.add((8, 9, 8)),
    "reduction": ops.reduction((8, 9, 8), 16),
    "mlp_head": ops.mlp_head((8, 5, 4), 10, hidden=12),
    "norm_head": ops.norm_head((8, 5, 4), 10),
    "fused, strided": ops.inverted_residual((16, 9, 8), 16, hidden=32, stride=2, fused=True),
}


@pytest.fixture(params=SPECS.values(), ids=SPECS)
def spec(request):
    return request.param


@pytest.fixture
def x(spec):
    draw, shape = torch.Generator().manual_seed(0), (2, spec.width("c_in"), spec.attr("h"), spec.attr("w"))
    return tuple(torch.randn(shape, generator=draw) for _ in range(2 if spec.op == "add" else 1))


def shaken(spec):
    """A block in training form, with norms that do something."""
    torch.manual_seed(0)
    block = trained(spec).eval()
    for module in block.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(values, std=0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return block


def test_shapes_and_counts_are_those_of_the_spec(spec, x):
    c, h, w = ops.output_shape(spec)
    for block, form in [(trained(spec).eval(), False), (deployed(spec).eval(), True)]:
        assert block(*x).flatten(1).shape == (2, c * h * w)
        counted = reparam.count(block, x)
        assert ops.counts(spec, deployed=form) == (counted.params, counted.macs)


def test_the_deployed_form_computes_the_same_with_the_fused_weights(spec, x):
    block, ships = shaken(spec).double(), deployed(spec).double().eval()
    if block.state_dict():
        ships.load_state_dict(reparam.fuse(block, tuple(each.double() for each in x)).state_dict())
    torch.testing.assert_close(
        ships(*(each.double() for each in x)), block(*(each.double() for each in x)), rtol=1e-10, atol=1e-10
    )


def test_an_inverted_residual_is_what_the_paper_says():
    """expand, depthwise, gate, project without activation, and the input added: computed here by hand."""
    spec = SPECS["irb, strided, gated"].with_widths(c_out=24)
    block = deployed(spec).double()
    x = torch.randn(1, 16, 9, 8, dtype=torch.float64)
    f, w = torch.nn.functional, dict(block.named_parameters())
    hidden = f.relu(f.conv2d(x, w["body.expand.conv.weight"], w["body.expand.conv.bias"]))
    hidden = f.relu(
        f.conv2d(hidden, w["body.depthwise.conv.weight"], w["body.depthwise.conv.bias"], stride=2, padding=1, groups=32)
    )
    mean = hidden.mean((2, 3), keepdim=True)
    gate = f.relu(f.conv2d(mean, w["body.se.reduce.weight"], w["body.se.reduce.bias"]))
    gate = torch.sigmoid(f.conv2d(gate, w["body.se.expand.weight"], w["body.se.expand.bias"]))
    wanted = f.conv2d(hidden * gate, w["body.project.conv.weight"], w["body.project.conv.bias"])
    torch.testing.assert_close(block(x), wanted)


def test_equal_shapes_add_the_input():
    spec = SPECS["fused"]
    block = deployed(spec)
    for parameter in block.body.project.parameters():
        torch.nn.init.zeros_(parameter)
    x = torch.randn(1, 16, 8, 8)
    assert torch.equal(block(x), x)


def test_norms_and_gates_are_those_of_gpunet():
    block = trained(SPECS["fused"])
    norms = [module for module in block.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert [norm.eps for norm in norms] == [NORM_EPS, NORM_EPS]
    (gate,) = [module for module in block.modules() if isinstance(module, SqueezeExcite)]
    assert (gate.reduce.out_channels, type(gate.act)) == (4, torch.nn.SiLU)


def test_a_residual_is_what_the_paper_says():
    """conv, norm, relu, conv, norm, the projected input added, relu: computed here by hand."""
    block = deployed(SPECS["basic, strided"]).double()
    x = torch.randn(1, 8, 9, 8, dtype=torch.float64)
    f, w = torch.nn.functional, dict(block.named_parameters())
    hidden = f.relu(f.conv2d(x, w["body.first.conv.weight"], w["body.first.conv.bias"], stride=2, padding=1))
    body = f.conv2d(hidden, w["body.second.conv.weight"], w["body.second.conv.bias"], padding=1)
    wanted = f.relu(body + f.conv2d(x, w["shortcut.conv.weight"], w["shortcut.conv.bias"], stride=2))
    torch.testing.assert_close(block(x), wanted)


def test_a_bottleneck_has_its_stride_in_the_middle():
    block = deployed(SPECS["bottleneck, strided"])
    assert [part.conv.stride for part in block.body] == [(1, 1), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", ["conv", "conv of groups", "irb"])
def test_a_repvgg_block_ships_as_the_same_convolution(name):
    spec = SPECS[name]
    torch.manual_seed(0)
    block = trained_as_repvgg(spec).eval()
    assert isinstance(block, reparam.RepVGGBlock) == (spec.op == "conv")
    counted = reparam.count(block, torch.zeros(1, spec.width("c_in"), spec.attr("h"), spec.attr("w")))
    assert ops.repvgg_counts(spec) == (counted.params, counted.macs)
    ships = deployed(spec)
    x = torch.randn(2, spec.width("c_in"), spec.attr("h"), spec.attr("w"))
    ships.load_state_dict(reparam.fuse(block, x).state_dict())
    assert reparam.compare(block, ships.eval(), x, torch.float32).within(1e-5)
