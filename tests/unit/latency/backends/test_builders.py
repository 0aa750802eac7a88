"""Engines are built for real where TensorRT-RTX is installed: that needs no GPU."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import threading
import time

import pytest

from latency import BuildFailed
from latency.backends import EngineBuilder
from latency.backends import builders as builders_file
from latency.backends.builders import Builders
from latency.backends.engines import EngineSpec
from latency.lowered import overhead_onnx


@pytest.fixture(scope="module")
def builders():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    with Builders("tensorrt-rtx", EngineSpec(compute_capabilities=("8.9",)), workers=1) as made:
        yield made


def test_engines_come_in_the_order_of_their_asking_and_a_bad_model_is_only_its_own_failure(builders):
    assert isinstance(builders, EngineBuilder)
    good, bad, again = (builders.submit(onnx) for onnx in (overhead_onnx(), b"not onnx", overhead_onnx()))
    assert len(good.result()) > 1000
    with pytest.raises(BuildFailed, match="Failed to parse the ONNX model"):
        bad.result()
    assert len(again.result()) == len(good.result())


def waiting(pipe):
    """Number of bytes in a pipe."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def test_a_builder_that_dies_fails_what_it_was_at_and_is_replaced(builders):
    builders.submit(overhead_onnx()).result()
    process = builders._processes[-1]
    os.kill(process.pid, signal.SIGSTOP)  # so that it is at work when it dies
    os.waitpid(process.pid, os.WUNTRACED)  # until it has stopped
    lost = builders.submit(overhead_onnx())
    while not waiting(process.stdin):  # until it was given the work
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(BuildFailed, match="the builder died with exit code -9"):
        lost.result()
    assert len(builders.submit(overhead_onnx()).result()) > 1000


def test_a_builder_ends_with_its_standard_input():
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    with Builders("tensorrt-rtx", EngineSpec(), workers=1) as builders:
        process = builders._start()
        process.stdin.close()
        assert process.wait(timeout=600) == 0
        process.stdin = None


def test_nothing_is_left_running_at_the_end():
    with Builders("tensorrt-rtx", EngineSpec(), workers=2) as builders:
        processes = [builders._start() for _ in range(2)]
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2
    with pytest.raises(BuildFailed, match="closed"):
        builders._start()


LIVES_ON = [sys.executable, "-P", "-c", "import os, time; os.close(1); time.sleep(60)"]


def test_a_process_that_is_being_started_when_the_builders_close_is_not_waited_for(monkeypatch):
    starting, go = threading.Event(), threading.Event()

    def start(command, **options):
        starting.set()
        assert go.wait(20)
        return popen([sys.executable, "-P", "-c", "import time; time.sleep(60)"], **options)

    popen = subprocess.Popen
    builders = Builders("tensorrt-rtx", EngineSpec(), workers=1)
    monkeypatch.setattr(subprocess, "Popen", start)
    lost = builders.submit(b"")
    assert starting.wait(20)
    closing = threading.Thread(target=builders.__exit__, args=(None, None, None))
    closing.start()
    go.set()
    closing.join(20)
    assert not closing.is_alive()
    with pytest.raises(BuildFailed, match="the builder died with exit code -9"):
        lost.result()


def test_a_builder_that_answers_no_more_and_lives_on_is_ended(monkeypatch):
    monkeypatch.setattr(builders_file, "_GRACE_S", 0.1)
    popen = subprocess.Popen
    with Builders("tensorrt-rtx", EngineSpec(), workers=1) as builders:
        monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(LIVES_ON, **options))
        with pytest.raises(BuildFailed, match="exit code -9"):
            builders.submit(b"").result()


def test_a_module_in_the_working_directory_is_not_run(monkeypatch, tmp_path):
    for name in ("msgspec", "numpy", "latency", "onnx"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'planted')!r}, 'w')")
    monkeypatch.chdir(tmp_path)
    with Builders("tensorrt-rtx", EngineSpec(), workers=1) as builders:
        process = builders._start()
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=600) == 0
        process.stdin = None
    assert not (tmp_path / "planted").exists()
