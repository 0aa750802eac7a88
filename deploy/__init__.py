"""Export any network to a directory that ships, regardless of how the network was found.

Exporting needs torch and is imported lazily: bundles are verified and run without torch.
"""

from typing import TYPE_CHECKING, Any

from deploy.bundle import Bundle, Manifest, load
from deploy.certificate import Certificate
from deploy.errors import BundleError, DeployError, LoweringError
from deploy.precision import certified
from deploy.start import start
from deploy.verify import Check, Verification, verify

if TYPE_CHECKING:
    from deploy.lowering import LOWERING_VERSION, features, lower, to_onnx
    from deploy.pipeline import export

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
    "start",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from deploy import lowering, pipeline

    return getattr(pipeline if name == "export" else lowering, name)
