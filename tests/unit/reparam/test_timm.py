"""Networks that others wrote, by the classes of timm: what `fuse` and `squeeze` leave of them."""

import importlib.util
import sys
import types

import pytest
import torch

from reparam import ChannelMask, channel_groups, compare, fuse_with_report, insert_masks, squeeze

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="no networks of others: timm is not installed"
)


@pytest.fixture(scope="module")
def create():
    name = "torchvision._meta_registrations"  # of another build of torch than torchvision's own, where they fail
    sys.modules.setdefault(name, types.ModuleType(name))
    import timm  # pyright: ignore[reportMissingImports]

    return timm.create_model


@pytest.mark.parametrize(
    ("name", "layers", "norms"),
    [
        ("resnet18", 21, 0),
        ("repvgg_a0", 23, 0),
        ("mobileone_s0", 44, 0),
        ("repvit_m0_9", 104, 0),
        ("fastvit_t8", 53, 0),
        ("efficientnet_b0", 82, 0),
        ("mobilenetv4_conv_small", 47, 0),
        ("repghostnet_050", 96, 0),
        ("densenet121", 121, 62),  # the norms in front of a ReLU, behind a concatenation
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_every_linear_branch_of_a_network_of_others_is_merged(name, layers, norms, create, randomized):
    torch.manual_seed(0)
    model, x = randomized(create(name)), torch.randn(1, 3, 64, 64)
    fused, report = fuse_with_report(model.double(), x)
    assert (report.layers[1], report.norms[1]) == (layers, norms)
    assert compare(model, fused, torch.randn(2, 3, 64, 64)).within(1e-10)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18", "efficientnet_b0", "mobilenetv3_small_100", "mobilenetv4_conv_small", "repvgg_a0", "mobileone_s0", "densenet121",
        "inception_v3", "repvit_m0_9", "hrnet_w18_small", "ghostnet_100", "vgg11_bn",
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_every_channel_but_the_outputs_can_go_and_the_code_stays(name, create, randomized):
    torch.manual_seed(0)
    side = 96 if name == "inception_v3" else 64
    model, x = randomized(create(name)), torch.randn(1, 3, side, side)
    groups = channel_groups(model, x)
    assert [group.why for group in groups if group.why] == ["it is an output of the network"]
    groups = [group for group in groups if not group.why]
    masked = insert_masks(model, x, groups, lambda group: ChannelMask(torch.arange(group.channels) % 2 == 0))
    squeezed = squeeze(masked, x)
    assert type(squeezed) is type(model)
    assert compare(masked, squeezed, x, torch.float32).within(1e-4)
    left, before = (sum(weight.numel() for weight in network.parameters()) for network in (squeezed, model))
    assert left < 0.5 * before


@pytest.mark.filterwarnings("ignore")
def test_heads_and_hidden_widths_of_a_transformer_go(create):
    torch.manual_seed(0)
    model, x = create("vit_tiny_patch16_224", img_size=64), torch.randn(1, 3, 64, 64)
    groups = {group.name: group for group in channel_groups(model, x) if not group.why}
    assert [group.channels for group in groups.values()] == [3, 768] * 12
    masked = insert_masks(model, x, [*groups.values()], lambda group: ChannelMask(torch.arange(group.channels) > 0))
    squeezed = squeeze(masked, x)
    assert compare(masked, squeezed, x).within(1e-6)
    assert squeezed.get_submodule("blocks.0.mlp.fc1").out_features == 767
