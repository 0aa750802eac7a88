"""The installed distribution: its version, and the command that installs an extra."""

import importlib.metadata
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

NAME = "lathe-nn"
"""Name on PyPI, where `lathe` is another project."""


def version() -> str:
    """Return the version of the installed distribution."""
    return importlib.metadata.version(NAME)


def install_command(extra: str = "", *, upgrade: bool = False) -> str:
    """Return the shell command that installs an extra.

    Args:
        extra: name of the extra; "" for the base install.
        upgrade: whether versions that already satisfy the requirements are replaced too.

    Returns:
        A command for the checkout if the install is editable (PEP 610), else for the distribution on PyPI.
    """
    checkout, suffix = _checkout(), f"[{extra}]" if extra else ""
    what = f"-e '{checkout}{suffix}'" if checkout else f"'{NAME}{suffix}'"
    return f"pip install {'--upgrade ' if upgrade else ''}{what}"


def _checkout() -> Path | None:
    """Return the directory of an editable install; None for any other."""
    try:
        text = importlib.metadata.distribution(NAME).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return None
    origin: dict[str, Any] = json.loads(text) if text else {}
    if not origin.get("dir_info", {}).get("editable"):
        return None
    url: str = origin["url"]
    return Path(unquote(urlsplit(url).path))
