from pathlib import Path

import pytest

from lathe import cli
from lathe.profiling import profile

OTHER_SIZES = "--resolution 16 --channels 4 --cells 2"


@pytest.fixture(scope="module")
def table_of_other_sizes(tmp_path_factory):
    path = tmp_path_factory.mktemp("sizes") / "t"
    words = f"profile nasbench201-small --backend simulated:seed=1 --protocol fast --networks 0 {OTHER_SIZES} --classes 10 --out {path}"
    list(profile(cli.parse(words.split())))
    return path


@pytest.fixture
def other_sizes(table_of_other_sizes, tmp_path, monkeypatch):
    """A directory with a table `t` of a space of other sizes than its own."""
    monkeypatch.chdir(tmp_path)
    Path("t").write_bytes(table_of_other_sizes.read_bytes())
