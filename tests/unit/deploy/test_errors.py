import pytest

import deploy
from deploy import errors


@pytest.mark.parametrize("name", ["DeployError", "LoweringError", "BundleError"])
def test_every_error_is_public_and_a_value_error_of_one_root(name):
    kind = getattr(errors, name)
    assert getattr(deploy, name) is kind
    assert issubclass(kind, errors.DeployError)
    assert issubclass(kind, ValueError)


def test_a_network_and_a_bundle_fail_apart():
    assert not issubclass(errors.LoweringError, errors.BundleError)
    assert not issubclass(errors.BundleError, errors.LoweringError)
