"""Any network to a directory that ships. Knows nothing of how the network was found."""

from deploy.bundle import Bundle, Manifest, load
from deploy.errors import BundleError, DeployError, LoweringError
from deploy.lowering import LOWERING_VERSION, to_onnx
from deploy.pipeline import export
from deploy.verify import Check, Verification, verify

__all__ = [
    "LOWERING_VERSION",
    "Bundle",
    "BundleError",
    "Check",
    "DeployError",
    "LoweringError",
    "Manifest",
    "Verification",
    "export",
    "load",
    "to_onnx",
    "verify",
]
