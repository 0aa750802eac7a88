"""User-fixable errors raised by `deploy`."""


class DeployError(ValueError):
    """Something cannot be exported, loaded or reported as requested.

    The one-line message says what, and how to fix it.
    """


class LoweringError(DeployError):
    """A module cannot be turned into ONNX."""


class BundleError(DeployError):
    """A directory is not a bundle, is damaged, or is in the way of a new one."""
