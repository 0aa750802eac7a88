import pytest

from latency import DeviceUnavailable, LatencyError, MissingExtra, backends


def test_an_unknown_backend_lists_the_known_ones():
    with pytest.raises(
        LatencyError, match="backend 'tpu' is unknown: choose one of onnxruntime, tensorrt, tensorrt-rtx"
    ):
        backends.get("tpu")


@pytest.mark.parametrize("name", backends.KNOWN)
def test_every_known_name_is_made_or_says_what_is_missing(name):
    if name == "replay":
        with pytest.raises(LatencyError, match="'replay' needs a table: name it as replay:PATH"):
            backends.get(name)
        return
    try:
        assert backends.get(name).name == name
    except (MissingExtra, DeviceUnavailable) as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_options_reach_the_backend():
    backend = backends.get("onnxruntime", threads=2, precision="fp32")
    assert (backend.device.threads, backend.precision) == (2, "fp32")
    assert isinstance(backend, backends.Backend)


def test_a_precision_that_a_backend_does_not_measure():
    with pytest.raises(LatencyError, match="'onnxruntime' measures precision 'fp32', not 'fp16'"):
        backends.get("onnxruntime", precision="fp16")
