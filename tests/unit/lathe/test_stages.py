import numpy as np
import pytest

from latency import LatencyError
from latency.backends.tensorrt import EngineSpec
from lathe import cli, stages


def spec(*flags):
    return stages._engine_spec(cli.parse(["export", "run", "--out", "out", *flags]))


def test_the_command_line_says_how_an_engine_is_built():
    assert spec() is None
    assert spec("--workspace-mib", "64", "--optimization-level", "0", "--version-compatible", "--hardware-compatible") == EngineSpec(
        workspace_mib=64, optimization_level=0, version_compatible=True, hardware_compatible=True
    )
    assert spec("--compute-capability", "8.9", "12.0") == EngineSpec(compute_capabilities=("8.9", "12.0"))


@pytest.mark.parametrize("content", [b"1, 2, 3", b"", None])
def test_samples_are_numbers(tmp_path, content):
    path = tmp_path / "samples.npy"
    if content is None:
        np.save(path, np.array(["a", "b"]))
    else:
        path.write_bytes(content)
    with pytest.raises(LatencyError, match="is not an .npy file.*: give inputs as numpy.save writes them$"):
        stages._array(path)
    np.save(path, np.arange(3))
    assert stages._array(path).tolist() == [0, 1, 2]
