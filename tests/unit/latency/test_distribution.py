import importlib.metadata
import json

import pytest

from latency import distribution


class _Installed:
    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.origin and json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'lathe-nn[train]'"),
        ({"url": "https://example.org/lathe.whl", "archive_info": {}}, "pip install 'lathe-nn[train]'"),
        ({"url": "file:///src/my%20lathe", "dir_info": {}}, "pip install 'lathe-nn[train]'"),
        ({"url": "file:///src/my%20lathe", "dir_info": {"editable": True}}, "pip install -e '/src/my lathe[train]'"),
    ],
)
def test_a_checkout_is_named_if_that_is_what_is_installed(origin, command, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: _Installed(origin))
    assert distribution.install_command("train") == command
    assert distribution.install_command() == command.replace("[train]", "")


def test_the_distribution_is_named_where_none_is_installed(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    assert distribution.install_command() == "pip install 'lathe-nn'"
    assert distribution.install_command("report", upgrade=True) == "pip install --upgrade 'lathe-nn[report]'"


def test_the_installed_distribution_has_a_version():
    assert distribution.version().count(".") == 2
