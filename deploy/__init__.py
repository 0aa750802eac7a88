"""Export any network to a directory that ships, regardless of how the network was found.

Exporting needs torch and is imported lazily: bundles are verified and run without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from deploy.bundle import Bundle, Manifest, load
from deploy.certificate import Certificate
from deploy.errors import BundleError, DeployError, LoweringError
from deploy.precision import certified
from deploy.start import start
from deploy.verify import Check, Verification, verify

if TYPE_CHECKING:
    from deploy.evidence import Evidence
    from deploy.lowering import LOWERING_VERSION, features, lower, to_onnx
    from deploy.options import Build, Form
    from deploy.pipeline import Record, export

__all__ = [
    "LOWERING_VERSION",
    "Build",
    "Bundle",
    "BundleError",
    "Certificate",
    "Check",
    "DeployError",
    "Evidence",
    "Form",
    "LoweringError",
    "Manifest",
    "Record",
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


_MODULES = {
    "Build": "options",
    "Evidence": "evidence",
    "Form": "options",
    "Record": "pipeline",
    "export": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploy.{_MODULES.get(name, 'lowering')}"), name)
