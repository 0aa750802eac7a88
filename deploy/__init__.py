"""Any network to a directory that ships. Knows nothing of how the network was found.

What exports needs torch and is imported when it is asked for: a bundle is verified and run where there is none.
"""

from typing import TYPE_CHECKING, Any

from deploy.bundle import Bundle, Manifest, load
from deploy.errors import BundleError, DeployError, LoweringError
from deploy.start import start
from deploy.verify import Check, Verification, verify

if TYPE_CHECKING:
    from deploy.lowering import LOWERING_VERSION, to_onnx
    from deploy.pipeline import export

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
    "start",
    "to_onnx",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "export":
        from deploy.pipeline import export

        return export
    if name in ("LOWERING_VERSION", "to_onnx"):
        from deploy import lowering

        return getattr(lowering, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
