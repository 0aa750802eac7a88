import pytest
from torch import nn


@pytest.fixture(scope="session")
def randomized():
    """Give every batch norm numbers as after training: at its defaults it hides mistakes."""

    def fill(module):
        for norm in module.modules():
            if isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm):
                if norm.affine:
                    nn.init.normal_(norm.weight)
                    nn.init.normal_(norm.bias)
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
        return module.eval()

    return fill
