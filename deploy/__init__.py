"""Any network to a directory that ships. Knows nothing of how the network was found."""

from deploy.bundle import Bundle, Manifest, load
from deploy.errors import BundleError, DeployError, LoweringError
from deploy.lowering import LOWERING_VERSION, features, lower, to_onnx
from deploy.pipeline import export
from deploy.precision import Certificate, certified
from deploy.verify import Check, Verification, verify

__all__ = [
    "LOWERING_VERSION",
    "Bundle",
    "BundleError",
    "Certificate",
    "Check",
    "DeployError",
    "LoweringError",
    "Manifest",
    "Verification",
    "certified",
    "export",
    "features",
    "load",
    "lower",
    "to_onnx",
    "verify",
]
