"""The installed distribution: its version, and the command that adds an extra to it."""

import importlib.metadata
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

NAME = "lathe-nn"
"""On PyPI, where `lathe` is another project."""


def version() -> str:
    """Version of the installed distribution."""
    return importlib.metadata.version(NAME)


def install_command(extra: str = "", *, upgrade: bool = False) -> str:
    """The shell command that installs an extra.

    Args:
        extra: its name; "" for the base install.
        upgrade: also replace versions that satisfy the requirements already.

    Returns:
        A command for the checkout if that is what is installed (PEP 610), else for the distribution on PyPI.
    """
    checkout, suffix = _checkout(), f"[{extra}]" if extra else ""
    what = f"-e '{checkout}{suffix}'" if checkout else f"'{NAME}{suffix}'"
    return f"pip install {'--upgrade ' if upgrade else ''}{what}"


def _checkout() -> Path | None:
    """Directory of an editable install."""
    try:
        text = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin = json.loads(text) if text else {}
    return Path(unquote(urlsplit(origin["url"]).path)) if origin.get("dir_info", {}).get("editable") else None
