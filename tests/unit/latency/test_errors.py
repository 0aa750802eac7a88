import re

import pytest

from latency import errors
from latency.distribution import install_command


def test_every_error_is_a_value_error_of_one_root():
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) == 9
    assert all(issubclass(kind, errors.LatencyError) and issubclass(kind, ValueError) for kind in kinds)


def test_require_returns_the_module():
    assert errors.import_extra("msgspec.json", "").__name__ == "msgspec.json"


def test_require_names_the_package_and_the_extra():
    with pytest.raises(errors.MissingExtra) as caught:
        errors.import_extra("no_such_package.inner", "train")
    assert str(caught.value) == f"this needs the package 'no_such_package.inner': {install_command('train')}"
    with pytest.raises(errors.MissingExtra, match=f"{re.escape(install_command())}$"):
        errors.import_extra("no_such_package", "")


def test_require_does_not_hide_a_broken_installation(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import a_dependency_that_is_gone\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="a_dependency_that_is_gone"):
        errors.import_extra("half_installed", "train")


def test_fingerprint_mismatch_keeps_its_parts():
    error = errors.FingerprintMismatch("table t", "device.threads", 1, 2, "measure again")
    assert (error.field, error.found, error.wanted) == ("device.threads", 1, 2)
    assert str(error) == "table t has device.threads 1, wanted 2: measure again"


def test_one_line():
    assert errors.one_line("a\n  b\tc") == "a b c"
    assert errors.one_line("x" * 50, limit=10) == "xxxxxxx..."
