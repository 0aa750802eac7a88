"""User-fixable errors raised by `search`."""


class SearchError(ValueError):
    """A search cannot start or continue as requested.

    The message says what was found, what is allowed and how to fix it.
    """
