"""What goes wrong in `deploy` and can be fixed by its user."""


class DeployError(ValueError):
    """Something cannot be exported, loaded or reported as asked; one line says what, and what fixes it."""


class LoweringError(DeployError):
    """A module cannot be turned into ONNX."""


class BundleError(DeployError):
    """A directory is not a bundle, is damaged, or is in the way of one."""
