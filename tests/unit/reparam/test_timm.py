"""Networks that others wrote, by the classes of timm: what `fuse` leaves of them."""

import importlib.util
import sys
import types

import pytest
import torch

from reparam import compare, fuse_with_report

pytestmark = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="no networks of others: timm is not installed")


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
