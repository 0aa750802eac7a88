"""What every test shares: one thread a worker that does not spin, and a printed reason for what is skipped."""

import ast
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from jaxtyping import install_import_hook

# Several workers with several threads each would wait for one another: the linear algebra of some tests then takes ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--choices", type=int, help="how many random networks of each space are priced, in place of fewer")


def pytest_configure() -> None:
    """Check shapes at run time, and take signals as a terminal's programs do.

    What started the tests may ignore some signals, as nohup does, and commands would inherit that.
    """
    install_import_hook(_modules_with_shapes(), "beartype.beartype")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def brief_measurements() -> Iterator[None]:
    """Commands in this process with `--protocol fast` sample briefly, however unsteady a busy machine is."""
    from latency import protocol  # after the import hook

    known, brief = protocol.get, msgspec.structs.replace(protocol.FAST, settle_ms=20.0, max_time_ms=60.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "get", lambda name: brief if name == brief.name else known(name))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu and (reason := _why_no_gpu()):
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def _modules_with_shapes() -> list[str]:
    """Modules that annotate shapes: by jaxtyping or by names that such modules define. Each call of a checked function costs 20 us."""
    root = Path(__file__).parents[1]
    imported, defined = {}, {"jaxtyping"}
    for path in (
        path
        for package in ("latency", "reparam", "deploy", "search")
        for path in sorted((root / package).rglob("*.py"))
    ):
        module = ast.parse(path.read_text())
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
        name = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        imported[name] = {word for node in nodes for word in (node.module or "", *(alias.name for alias in node.names))}
        if "jaxtyping" in imported[name]:
            assigned = [
                node.targets[0]
                for node in module.body
                if isinstance(node, ast.Assign) and isinstance(node.value, ast.Subscript | ast.BinOp)
            ]
            defined |= {target.id for target in assigned if isinstance(target, ast.Name)}
    return [name for name, words in imported.items() if words & defined]


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
