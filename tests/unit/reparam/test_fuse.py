import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reparam import (
    Block,
    ChannelMask,
    ConvBlock,
    DiverseBranchBlock,
    LightBlock,
    MobileOneBlock,
    RepVGGBlock,
    compare,
    fuse,
    fuse_exactly,
    fuse_with_report,
)
from reparam.algebra import norm_affine
from reparam.errors import ReparamError
from reparam.graph import aten, read_network
from zoo import ZOO


def chain():
    return nn.Sequential(
        RepVGGBlock(3, 8, stride=2),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        RepVGGBlock(8, 8),
    )


def test_every_branch_and_norm_is_gone_and_the_output_is_the_same(randomized):
    model = randomized(chain()).double()
    fused = fuse(model, torch.randn(1, 3, 8, 8))
    assert not any(isinstance(module, RepVGGBlock | nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 3
    assert not fused.training
    assert compare(model, fused, torch.randn(2, 3, 12, 12)).within(1e-12)


def test_the_dtype_stays_and_rounding_happens_once(randomized):
    model = randomized(chain())
    fused = fuse(model, torch.randn(1, 3, 8, 8))
    assert all(parameter.dtype == torch.float32 for parameter in fused.parameters())
    exact = fuse(copy.deepcopy(model).double(), torch.randn(1, 3, 8, 8))
    for single, double in zip(fused.parameters(), exact.parameters(), strict=True):
        assert torch.equal(single, double.float())


def test_exact_weights_are_in_float64_in_a_graph_of_the_types_that_the_code_names(randomized):
    class Pixels(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.conv(x.float() / 255))

    model, x = randomized(Pixels()), torch.randint(0, 255, (1, 3, 4, 4), dtype=torch.uint8)
    exact, report = fuse_exactly(model, x)
    assert report.merged == ("conv: one layer for div div, convolution conv, batch norm norm",)
    assert all(parameter.dtype == torch.float64 for parameter in exact.parameters())
    assert compare(model, exact, x).within(1e-12)
    rounded, expected = exact.float(), fuse(model, x)
    assert torch.equal(rounded(x), expected(x))


def test_the_argument_stays_as_it_was(randomized):
    model = randomized(chain()).train()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    fuse(model, torch.randn(1, 3, 8, 8))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    calls.clear()
    model(torch.randn(2, 3, 8, 8))
    assert calls == [1]


def test_the_seed_of_torch_is_left_alone():
    model = chain()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fuse(model, torch.zeros(1, 3, 8, 8))
    assert torch.equal(torch.rand(3), expected)


def test_the_model_itself_may_be_a_block():
    assert isinstance(fuse(RepVGGBlock(2, 2), torch.zeros(1, 2, 4, 4)), ConvBlock)


def test_a_block_that_is_used_twice_stays_one_block(randomized):
    block = randomized(RepVGGBlock(4, 4))
    fused = fuse(nn.Sequential(block, nn.ReLU(), block), torch.zeros(1, 4, 5, 5))
    assert fused[0] is fused[2]
    assert isinstance(fused[0], ConvBlock)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def norms(model):
    return sum(isinstance(module, NORMS) for module in model.modules())


class Net(nn.Module):
    """Parts by name, and what to do with them: `run(self, x)`."""

    def __init__(self, run, **parts):
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.run(self, x)


def fused_has(model, left, x):
    """The fused form of a model with that many norms left, checked."""
    fused = fuse(model.double(), x)
    assert norms(fused) == left
    assert compare(model, fused, x).within(1e-12)
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in model.named_modules()]
    return fused


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (9,)),
        (
            nn.Conv2d(4, 6, 3, dilation=2, padding="same", groups=2, padding_mode="circular", bias=False),
            nn.BatchNorm2d(6),
            (9, 8),
        ),
        (nn.Conv3d(4, 6, (1, 2, 3), stride=(1, 2, 1)), nn.BatchNorm3d(6, affine=False), (5, 6, 7)),
        (nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False), nn.BatchNorm1d(6), (5,)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), nn.BatchNorm2d(6), (5, 4)),
        (nn.ConvTranspose3d(4, 6, 2), nn.SyncBatchNorm(6), (3, 3, 3)),
        (nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), ()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_norm_behind_goes_into_every_kind_of_layer(layer, norm, shape, randomized):
    model = randomized(Net(lambda self, x: torch.relu(self.norm(self.layer(x)) + 1), layer=layer, norm=norm))
    fused = fused_has(model, 0, torch.randn(2, 4, *shape))
    assert type(fused.layer) is type(layer)
    assert isinstance(fused.norm, nn.Identity)


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (nn.Conv2d(4, 6, 3, groups=2), 0),
        (nn.Conv2d(4, 6, 3, padding="valid", stride=2), 0),
        (nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect", bias=False), 0),
        (nn.Conv2d(4, 6, 3, padding=(0, 1)), 1),
        (nn.Conv2d(4, 6, 3, padding="same"), 1),
        (nn.ConvTranspose2d(4, 6, 3), 1),
    ],
)
def test_a_norm_in_front_goes_into_a_convolution_where_that_is_exact(layer, left, randomized):
    model = randomized(Net(lambda self, x: self.layer(self.norm(x)), norm=nn.BatchNorm2d(4), layer=layer))
    fused_has(model, left, torch.randn(2, 4, 9, 8))


def test_a_norm_that_keeps_zero_goes_behind_zero_padding(randomized):
    model = randomized(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)))
    nn.init.zeros_(model[0].bias)
    model[0].running_mean.zero_()
    fused_has(model, 0, torch.randn(2, 4, 9, 8))


def test_a_norm_in_front_of_a_linear_layer_goes_into_it(randomized):
    fused_has(randomized(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))), 0, torch.randn(5, 4))


def test_a_norm_between_two_convolutions_goes_into_the_first(randomized):
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    fused = fused_has(model, 0, torch.randn(2, 3, 6, 6))
    assert torch.equal(fused[2].weight, model[2].weight)


def test_pairs_are_found_in_the_graph_and_not_by_names(randomized):
    """A residual network with functions, its norms declared apart from their convolutions."""

    def run(self, x):
        y = torch.relu(self.norms[1](self.convs[0](x)))
        y = self.norms[0](self.convs[1](y))
        return torch.flatten(nn.functional.adaptive_avg_pool2d(torch.relu(x + y), 1), 1)

    convs = nn.ModuleList([nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)])
    model = randomized(Net(run, convs=convs, norms=nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(6)])))
    fused_has(model, 0, torch.randn(2, 4, 7, 7))


@pytest.mark.parametrize("network", ZOO, ids=lambda network: network.name)
def test_whole_networks_keep_only_norms_behind_concatenations(network):
    left = 12 if network.name == "DenseNet-121" else 0  # an activation stands between them and what they could go into
    model = network.make(small=True).double()
    fused = fuse(model, network.input(small=True))
    assert norms(fused) == left
    assert compare(model, fused, network.input(small=True, batch=2)).within(1e-12)


def case(run, **parts):
    return pytest.param(run, parts)


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        case(lambda s, x: (y := s.conv(x)) * torch.sigmoid(s.norm(y)), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(x).relu() + s.norm(x.relu()), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x).relu()), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(
            lambda s, x: s.norm(s.mask(s.conv(x))),
            conv=nn.Conv2d(4, 4, 1),
            mask=ChannelMask(torch.tensor([True, False, True, True])),
            norm=nn.BatchNorm2d(4),
        ),
        case(lambda s, x: s.norm(s.linear(x)), linear=nn.Linear(6, 6), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.linear(x[:, :, 0])), linear=nn.Linear(6, 4), norm=nn.BatchNorm1d(4)),
        case(lambda s, x: s.norm(s.conv(x)), conv=nn.Conv2d(4, 4, 1), norm=nn.InstanceNorm2d(4)),
        case(
            lambda s, x: s.norm(s.conv(x)), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4, track_running_stats=False)
        ),
    ],
)
def test_what_would_not_be_the_same_is_left_alone(run, parts, randomized):
    model = Net(run, **parts)
    model = randomized(model) if parts["norm"].track_running_stats else model.eval()
    x = torch.randn(2, 4, 4, 6)
    fused, report = fuse_with_report(model.double(), x)
    norms = [str(node.target) for node in read_network(fused, (x,)).graph.nodes if "_norm" in str(node.target)]
    assert norms
    assert compare(model, fused, x).within(1e-12)
    assert len(report.left) == report.norms[1] == report.norms[0] == sum("batch_norm" in norm for norm in norms)


def test_each_norm_that_stays_has_its_reason(randomized):
    def reason(model, *, shape=(4, 4, 6)):
        (line,) = fuse_with_report(randomized(model), torch.zeros(2, *shape))[1].left
        return line

    assert "1: it reads relu and is read by output" in reason(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    assert "pads with zeros, and the first does not map zero to zero" in reason(
        nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1))
    )
    assert "one is over dimension 2, the other over 1" in reason(
        nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), shape=(4, 4)
    )


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        case(lambda s, x: (y := s.conv(x)) + s.norm(y), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(s.conv(x))), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x)) * s.conv.weight.sum(), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x)) + s.norm.bias.sum(), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x)), conv=parametrized(), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x)), conv=Odd(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(lambda s, x: s.norm(s.conv(x)) if s.norm.eps else x, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        case(
            lambda s, x: F.batch_norm(s.conv(x), s.norm.running_mean, s.norm.running_var),
            conv=nn.Conv2d(4, 4, 1),
            norm=nn.BatchNorm2d(4),
        ),
        case(
            lambda s, x: s.conv(x) - 0.5 * s.norm(x) + x / 2, conv=nn.Conv2d(4, 4, 3, padding=1), norm=nn.BatchNorm2d(4)
        ),
        case(
            lambda s, x: s.norm(F.avg_pool2d(x, 3, 1, 1)) + s.conv(x),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
        ),
    ],
)
def test_what_is_linear_becomes_one_layer_however_it_is_written(run, parts, randomized):
    model, x = randomized(Net(run, **parts)).double(), torch.randn(2, 4, 6, 6)
    fused, report = fuse_with_report(model, x)
    assert compare(model, fused, x).within(1e-12)
    assert report.norms == (1, 0)
    layers = [node for node in read_network(fused, (x,)).graph.nodes if node.target is aten.convolution.default]
    assert len(layers) == report.layers[1] == 1


def test_shared_modules_are_folded_where_every_call_allows_it(randomized):
    def twice(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))

    def one_norm(self, x):
        return self.norm(self.conv(x)).relu() + self.norm(self.other(x))

    def two_norms(self, x):
        return self.norm(self.conv(x)).relu() + self.second(self.conv(x))

    make = {"conv": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)}
    x = torch.randn(2, 4, 6, 6)
    fused_has(randomized(Net(twice, **make)), 0, x)
    fused_has(randomized(Net(one_norm, **make, other=nn.Conv2d(4, 4, 1))), 0, x)
    model = randomized(Net(two_norms, **make, second=nn.BatchNorm2d(4))).double()
    fused, report = fuse_with_report(model, x)  # the one layer becomes two, as it is called twice
    assert (report.graphs, report.layers, report.norms) == (("",), (2, 2), (2, 0))
    assert compare(model, fused, x).within(1e-12)


def test_what_has_hooks_stays_and_no_hook_is_called(randomized):
    calls = []
    model = randomized(
        nn.Sequential(chain(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
    )
    model[0].register_forward_hook(lambda *_: calls.append("chain"))
    model[0][0].register_forward_hook(lambda *_: calls.append("block"))
    model[1].register_forward_pre_hook(lambda *_: calls.append("conv"))
    model[5].register_forward_hook(lambda *_: calls.append("norm"))
    fused = fuse(model, torch.randn(1, 3, 8, 8))
    assert calls == []
    assert norms(fused) == 2
    fused(torch.randn(1, 3, 8, 8))
    assert calls == ["chain", "conv", "norm"]


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(
        nn.Conv2d(2, 2, 3).requires_grad_(False), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    )
    assert [parameter.requires_grad for parameter in fuse(model, torch.zeros(1, 2, 5, 5)).parameters()] == [
        False,
        False,
        True,
        True,
    ]


def test_norms_without_statistics_stay():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms(fuse(model, torch.zeros(1, 4, 3, 3))) == 1


def test_parts_of_a_sequential_that_others_read_are_not_folded(randomized):
    """In a network whose control flow torch.fx cannot trace."""

    def run(self, x):
        x = F.pad(x, (0, 1)) if x.shape[-1] % 2 else x
        taps = []
        for layer in self.body:
            x = layer(x)
            taps.append(x)
        return x, taps[0], self.body[0](x)

    body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    model, x = randomized(Net(run, body=body)).double(), torch.randn(2, 4, 7, 7)
    fused, report = fuse_with_report(model, x)
    assert report.norms == (1, 1)
    assert compare(model, fused, x).within(1e-12)


def test_inputs_and_defaults_are_those_of_the_network(randomized):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x, y, scale=None):
            z = self.norm(self.conv(x + y))
            return z if scale is None else z * scale

    model = randomized(Two()).double()
    x, y, scale = torch.randn(3, 2, 4, 5, 5)
    fused = fuse(model, (x, y))
    assert norms(fused) == 0
    assert compare(model, fused, (x, y)).within(1e-12)
    assert compare(model, fused, (x, y, scale)).within(1e-12)


def test_a_new_kind_of_block_is_found_by_its_type(randomized):
    model = randomized(
        nn.Sequential(MobileOneBlock(3, 3, groups=3), DiverseBranchBlock(3, 4), LightBlock(4, 6))
    ).double()
    fused = fuse(model, torch.zeros(1, 3, 9, 9))
    assert not any(isinstance(module, (Block, *NORMS)) for module in fused.modules())
    assert compare(model, fused, torch.randn(2, 3, 9, 9)).within(1e-12)

    class Twice(Block):
        def __init__(self):
            super().__init__()
            self.mask = nn.Identity()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.mask(x + x)

        def deployed(self):
            return nn.Hardtanh(-1, 1)

        def probe_shape(self):
            return 1, 2, 2

    with pytest.raises(ReparamError, match="block 0 is not the same after merging"):
        fuse(nn.Sequential(Twice()), torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("wrap", [lambda block: nn.Sequential(nn.ReLU(), nn.Sequential(block)), lambda block: block])
def test_a_block_that_does_not_fold_exactly_is_named(wrap, monkeypatch):
    block = RepVGGBlock(4, 4)
    exact = RepVGGBlock.deployed

    def wrong(self):
        merged = exact(self)
        merged.conv.bias.data += 1e-8
        return merged

    monkeypatch.setattr(RepVGGBlock, "deployed", wrong)
    model = wrap(block)
    name = r"1\.0" if isinstance(model, nn.Sequential) else r"\(the model itself\)"
    with pytest.raises(ReparamError, match=f"block {name} is not the same after merging"):
        fuse(model, torch.zeros(1, 4, 5, 5))


def test_a_block_whose_norm_has_no_statistics_is_named():
    block = RepVGGBlock(4, 4)
    block.point.norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ReparamError, match="block 0: a batch norm without running statistics"):
        fuse(nn.Sequential(block), torch.zeros(1, 4, 5, 5))


def test_what_runs_by_a_wrong_layer_is_named_by_its_first_value(monkeypatch, randomized):
    def wrong(*args, **options):
        scale, shift = norm_affine(*args, **options)
        return scale, shift + 1e-6

    monkeypatch.setattr("reparam.branches.norm_affine", wrong)
    model = randomized(
        nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)
        )
    )
    line = r"the network is not the same after merging, first at getitem \(batch norm of 3\): the output differs by .* more than 1e-10"
    with pytest.raises(ReparamError, match=line):
        fuse(model, torch.zeros(1, 3, 9, 9))


def test_the_report_counts_what_runs_and_names_blocks(randomized):
    model = randomized(
        nn.Sequential(RepVGGBlock(3, 4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))
    )
    _, report = fuse_with_report(model, torch.zeros(1, 3, 9, 9))
    assert report.blocks == ("0",)
    assert report.merged == ("1: one layer for convolution 1, batch norm 2",)
    assert report.left == ("4: it reads relu and is read by output",)
    assert report.summary == "blocks deployed: 1; layers 2 -> 2, norms 2 -> 1, 1 left"


def test_keywords_of_the_network_may_have_any_name(randomized):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x, model, example_input):
            return self.norm(self.conv(x)) * model + example_input

    x = torch.randn(1, 3, 4, 4)
    more = {"model": torch.ones(1), "example_input": torch.zeros(1)}
    model = randomized(Named())
    fused = fuse(model, x, **more)
    assert norms(fused) == 0
    assert compare(model, fused, x, torch.float32, keywords=more).within(1e-5)
