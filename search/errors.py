"""What goes wrong in `search` and can be mended by its user."""


class SearchError(ValueError):
    """A search cannot start or go on as asked; the message says what was found, what is allowed and what mends it."""
