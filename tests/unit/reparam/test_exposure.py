import torch
from torch import nn
from torch.nn import functional as F

from reparam import ChannelMask, channel_groups, insert_masks, squeeze

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Functional(nn.Module):
    """Two layers that are no modules, with a norm that is one in front of them."""

    def __init__(self, norm):
        super().__init__()
        self.w, self.v = (nn.Parameter(torch.randn(*size, 1, 1)) for size in ((8, 4), (4, 8)))
        self.norm = norm

    def forward(self, x):
        return F.conv2d(F.relu(F.conv2d(self.norm(x), self.w)), self.v)


def test_a_value_between_two_operators_is_masked_in_the_graph_of_its_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Functional(nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)).train()
    groups = {group.name: group for group in channel_groups(model, X)}
    assert list(groups) == ["0", "1", "1:convolution_2", "2"]
    (site,) = groups["1"].sites
    assert str(site) == "1.relu, in the graph of 1"
    masked = insert_masks(model, X, [groups["1"]], lambda group: ChannelMask(torch.arange(group.channels) % 2 == 0))
    assert type(masked[0]) is nn.Conv2d
    assert masked[1].norm.training
    squeezed = squeeze(masked, X)
    assert [tuple(squeezed.get_parameter(name).shape[:2]) for name in ("1.w", "1.v")] == [(4, 4), (4, 4)]
    assert not model[1].norm.running_mean.any()


def test_code_with_a_norm_of_its_own_stays():
    """Its graph would norm as in evaluation mode."""

    def norm(x):
        return F.batch_norm(x, torch.zeros(4), torch.ones(4))

    module = Functional(None)
    module.norm = norm
    (group, *_) = channel_groups(nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1), module), X)[1:]
    assert (group.sites, group.why) == ((), "some of its readers use it where no mask can be placed")
