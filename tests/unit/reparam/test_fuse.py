import copy

import pytest
import torch
from torch import nn

from reparam import ConvBlock, RepVGGBlock, compare, fuse
from reparam.errors import ReparamError


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


def test_what_cannot_be_folded_stays():
    shared = nn.Conv2d(4, 4, 1)

    class Skip(nn.Sequential):
        def forward(self, x):
            return x + super().forward(x)

    kept = nn.Sequential(
        nn.Sequential(shared, nn.BatchNorm2d(4)),
        nn.Sequential(shared, nn.BatchNorm2d(4, track_running_stats=False)),
        Skip(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
    )
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fuse(kept).modules()) == 3


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
