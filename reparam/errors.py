"""User-fixable errors raised by `reparam`."""


class ReparamError(ValueError):
    """A network cannot be rewritten as asked; the message names the block or the node."""
