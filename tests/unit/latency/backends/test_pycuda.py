"""The real pycuda, as installed or as tools/build_pycuda.py builds it where there is no CUDA."""

import re

import pytest

from latency import DeviceUnavailable
from latency.backends.cuda import connect

driver = pytest.importorskip(
    "pycuda.driver",
    reason="pycuda is not installed; tools/build_pycuda.py builds it without CUDA",
    exc_type=ImportError,
)


def parameters(function) -> list[str]:
    """Names of the parameters, of which Boost.Python's docstring has the signature; optional ones in brackets."""
    signature = re.search(r"^\w+\((.*)\) ->", function.__doc__.strip(), re.MULTILINE)
    assert signature, function.__doc__
    return re.findall(r"\(\w+\)(\w+)", signature[1])


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (driver, ["init", "mem_alloc", "memcpy_htod", "memcpy_dtoh", "Error"]),
        (driver.Device, ["name", "total_memory", "compute_capability", "pci_bus_id", "retain_primary_context"]),
        (driver.Context, ["push", "pop"]),
        (driver.DeviceAllocation, ["free", "__int__"]),
        (driver.Stream, ["synchronize", "handle"]),
        (driver.Event, ["record", "synchronize", "time_since"]),
        (driver.event_flags, ["BLOCKING_SYNC", "DEFAULT"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_name_that_is_used_exists(owner, names):
    assert [name for name in names if not hasattr(owner, name)] == []


@pytest.mark.parametrize(
    ("function", "first"),
    [
        (driver.memcpy_htod, ["dest", "src"]),
        (driver.memcpy_dtoh, ["dest", "src"]),
        (driver.Event.record, ["arg1", "stream"]),
        (driver.Event.time_since, ["arg1", "arg2"]),
        (driver.Event.synchronize, ["arg1"]),
        (driver.Stream.synchronize, ["arg1"]),
        (driver.mem_alloc, ["arg1"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_functions_take_what_they_are_given_in_that_order(function, first):
    assert parameters(function)[: len(first)] == first


def test_events_and_streams_take_flags_that_can_be_left_out():
    for kind in (driver.Event, driver.Stream):
        assert parameters(kind.__init__)[-1] == "flags"


def test_errors_are_exceptions_and_no_device_is_said_in_one_line():
    assert issubclass(driver.Error, Exception)
    try:
        driver.init()
    except driver.Error:
        with pytest.raises(DeviceUnavailable, match="^CUDA does not start: cuInit failed: "):
            connect("tensorrt")
    else:
        pytest.skip("there is a GPU: tests/gpu/test_cuda.py runs on it")
