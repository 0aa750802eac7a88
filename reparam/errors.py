"""What goes wrong in `reparam` and can be mended by its user."""


class ReparamError(ValueError):
    """A network cannot be rewritten as asked; the message names the block or the node."""
