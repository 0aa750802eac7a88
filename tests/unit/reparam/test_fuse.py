import copy

import pytest
import torch
from torch import nn

from reparam import Block, ChannelMask, ConvBlock, DiverseBranchBlock, LightBlock, MobileOneBlock, RepVGGBlock, compare, fuse
from reparam.errors import ReparamError
from zoo import ZOO


def chain():
    return nn.Sequential(
        RepVGGBlock(3, 8, stride=2),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False, groups=2), nn.BatchNorm2d(8), nn.ReLU()),
        RepVGGBlock(8, 8),
    )


def test_every_branch_and_norm_is_gone_and_the_output_is_the_same(randomized):
    model = randomized(chain()).double()
    fused = fuse(model)
    assert not any(isinstance(module, RepVGGBlock | nn.BatchNorm2d) for module in fused.modules())
    assert sum(isinstance(module, nn.Conv2d) for module in fused.modules()) == 3
    assert not fused.training
    assert compare(model, fused, torch.randn(2, 3, 12, 12)).within(1e-12)


def test_the_dtype_stays_and_rounding_happens_once(randomized):
    model = randomized(chain())
    fused = fuse(model)
    assert all(parameter.dtype == torch.float32 for parameter in fused.parameters())
    exact = fuse(copy.deepcopy(model).double())
    for single, double in zip(fused.parameters(), exact.parameters(), strict=True):
        assert torch.equal(single, double.float())


def test_the_argument_stays_as_it_was(randomized):
    model = randomized(chain()).train()
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    fuse(model)
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
    fuse(model)
    assert torch.equal(torch.rand(3), expected)


def test_the_model_itself_may_be_a_block():
    assert isinstance(fuse(RepVGGBlock(2, 2)), ConvBlock)


def test_a_block_that_is_used_twice_stays_one_block(randomized):
    block = randomized(RepVGGBlock(4, 4))
    fused = fuse(nn.Sequential(block, nn.ReLU(), block))
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
    fused = fuse(model.double())
    assert norms(fused) == left
    assert compare(model, fused, x).within(1e-12)
    assert [name for name, _ in fused.named_modules()] == [name for name, _ in model.named_modules()]
    return fused


@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), (9,)),
        (nn.Conv2d(4, 6, 3, dilation=2, padding="same", groups=2, padding_mode="circular", bias=False), nn.BatchNorm2d(6), (9, 8)),
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
    model = randomized(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
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
    fused = fuse(model)
    assert norms(fused) == left
    assert compare(model, fused, network.input(small=True, batch=2)).within(1e-12)


def leave_alone(run, **parts):
    return pytest.param(run, parts)


def parametrized():
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))


class Odd(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        leave_alone(lambda s, x: (y := s.conv(x)) + s.norm(y), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(s.conv(x))), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)) * s.conv.weight.sum(), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)) + s.norm.bias.sum(), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)).relu() + s.norm(x), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x).relu()), conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)), conv=parametrized(), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)), conv=Odd(4, 4, 1), norm=nn.BatchNorm2d(4)),
        leave_alone(
            lambda s, x: s.norm(s.mask(s.conv(x))),
            conv=nn.Conv2d(4, 4, 1),
            mask=ChannelMask(torch.tensor([True, False, True, True])),
            norm=nn.BatchNorm2d(4),
        ),
        leave_alone(lambda s, x: s.norm(s.linear(x)), linear=nn.Linear(6, 6), norm=nn.BatchNorm2d(4)),
        leave_alone(lambda s, x: s.norm(s.linear(x[:, :, 0])), linear=nn.Linear(6, 5), norm=nn.BatchNorm1d(4)),
        leave_alone(lambda s, x: s.norm(s.conv(x)), conv=nn.Conv2d(4, 4, 1), norm=nn.InstanceNorm2d(4)),
    ],
)
def test_what_would_not_be_the_same_is_left_alone(run, parts, randomized):
    model = randomized(Net(run, **parts))
    fused_has(model, norms(model), torch.randn(2, 4, 6, 6))


def test_shared_modules_are_folded_where_every_call_allows_it(randomized):
    def twice(self, x):
        return self.norm(self.conv(self.norm(self.conv(x)).relu()))

    def one_norm(self, x):
        return self.norm(self.conv(x)) + self.norm(self.other(x))

    def two_norms(self, x):
        return self.norm(self.conv(x)) + self.second(self.conv(x))

    make = {"conv": nn.Conv2d(4, 4, 3, padding=1), "norm": nn.BatchNorm2d(4)}
    x = torch.randn(2, 4, 6, 6)
    fused_has(randomized(Net(twice, **make)), 0, x)
    fused_has(randomized(Net(one_norm, **make, other=nn.Conv2d(4, 4, 1))), 0, x)
    fused_has(randomized(Net(two_norms, **make, second=nn.BatchNorm2d(4))), 2, x)


def test_what_has_hooks_stays_and_no_hook_is_called(randomized):
    calls = []
    model = randomized(nn.Sequential(chain(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)))
    model[0].register_forward_hook(lambda *_: calls.append("chain"))
    model[0][0].register_forward_hook(lambda *_: calls.append("block"))
    model[1].register_forward_pre_hook(lambda *_: calls.append("conv"))
    model[5].register_forward_hook(lambda *_: calls.append("norm"))
    fused = fuse(model)
    assert calls == []
    assert norms(fused) == 2
    fused(torch.randn(1, 3, 8, 8))
    assert calls == ["chain", "conv", "norm"]


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Conv2d(2, 2, 1).requires_grad_(False), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))
    assert [parameter.requires_grad for parameter in fuse(model).parameters()] == [False, False, True, True]


def test_norms_without_statistics_stay():
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    assert norms(fuse(model)) == 1


def test_a_model_that_cannot_be_traced_is_folded_in_its_sequentials(randomized):
    shared = nn.Conv2d(4, 4, 1)

    class Skip(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    def run(self, x):
        x = self.body(x)
        return self.norm(self.conv(x)) if x.sum() > 0 else x

    body = nn.Sequential(
        nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        Skip(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        RepVGGBlock(4, 4),
    )
    model = randomized(Net(run, body=body, conv=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4))).double()
    fused = fuse(model)
    assert norms(fused) == 4
    assert isinstance(fused.body[0][1], nn.Identity)
    assert isinstance(fused.body[4], ConvBlock)
    assert compare(model, fused, torch.randn(2, 4, 7, 7)).within(1e-12)


@pytest.mark.parametrize("error", [KeyError, IndexError, AssertionError, ValueError, TypeError])
def test_whatever_the_networks_own_code_makes_of_tracing_is_survived(error, randomized):
    def run(self, x):
        if not isinstance(x, torch.Tensor):
            raise error("no tensor")
        return self.body(x)

    fused_has(randomized(Net(run, body=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))), 0, torch.randn(1, 4, 3, 3))


def test_inputs_and_defaults_are_those_of_the_network(randomized):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x, y, scale=None):
            z = self.norm(self.conv(x + y))
            return z if scale is None else z * scale

    model = randomized(Two()).double()
    fused = fuse(model)
    assert norms(fused) == 0
    x, y, scale = torch.randn(3, 2, 4, 5, 5)
    assert compare(model, fused, (x, y)).within(1e-12)
    assert compare(model, fused, (x, y, scale)).within(1e-12)


def test_a_new_kind_of_block_is_found_by_its_type(randomized):
    model = randomized(nn.Sequential(MobileOneBlock(3, 3, groups=3), DiverseBranchBlock(3, 4), LightBlock(4, 6))).double()
    fused = fuse(model)
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
        fuse(nn.Sequential(Twice()))


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
        fuse(model)


def test_a_block_whose_norm_has_no_statistics_is_named():
    block = RepVGGBlock(4, 4)
    block.point.norm = nn.BatchNorm2d(4, track_running_stats=False)
    with pytest.raises(ReparamError, match="block 0: a batch norm without running statistics"):
        fuse(nn.Sequential(block))
