"""What every test shares: one thread a worker that does not spin, which tests stay together, and a printed reason for what is skipped."""

import os
from pathlib import Path

import pytest

# Several workers with several threads each would wait for one another: the linear algebra of some tests then takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

INTEGRATION = Path(__file__).with_name("integration")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            item.add_marker(pytest.mark.xdist_group(_group(item)))
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and (reason := _why_no_gpu()):
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def _group(item: pytest.Item) -> str:
    """Tests of one group run in one worker, one after the other: those of a file share its fixtures, and what measures this machine by whole
    commands shares one table, run and bundle, and is not to be disturbed by itself."""
    return "integration" if INTEGRATION in item.path.parents else str(item.path)


def _why_no_gpu() -> str:
    try:
        import pynvml
    except ModuleNotFoundError:
        return "no GPU tests: nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return f"no GPU tests: {error}"
    count = pynvml.nvmlDeviceGetCount()
    pynvml.nvmlShutdown()
    return "" if count else "no GPU tests: the driver reports no GPU"
