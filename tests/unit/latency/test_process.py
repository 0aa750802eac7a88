import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latency import LatencyError, process
from latency.process import Stopped, run


def raising(error):
    def work():
        raise error

    return work


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (LatencyError("no such\nblock"), 2, "p: no such block\n"),
        (OSError(28, "No space left on device", "t.jsonl"), 2, "p: t.jsonl: No space left on device\n"),
        (OSError(28, "No space left on device"), 2, "p: No space left on device\n"),
        (LatencyError("not\udcff\x1b[31m"), 2, "p: not\\udcff\\x1b[31m\n"),
        (
            LatencyError(f"{'n' * 5000} is unknown: choose one of a, b"),
            2,
            f"p: {'n' * 80}...{'n' * 20} is unknown: choose one of a, b\n",
        ),
        (LookupError("theirs"), 2, "p: theirs\n"),
        (KeyboardInterrupt(), 130, "p: interrupted; nothing was kept, give the same command again\n"),
        (Stopped(signal.SIGTERM), 143, "p: ended by SIGTERM; nothing was kept, give the same command again\n"),
        (Stopped(signal.SIGHUP), 129, "p: ended by SIGHUP; nothing was kept, give the same command again\n"),
        (BrokenPipeError(), 141, ""),
        (MemoryError(), 70, "p: out of memory: close other programs, or give it a machine with more\n"),
    ],
)
def test_what_is_raised_becomes_a_line_and_an_exit_code(raised, code, said, capfd):
    assert run("p", raising(raised), user_errors=lambda: (LookupError,)) == code
    assert capfd.readouterr().err == said


def test_that_the_command_goes_on_is_said_where_it_does(capsys):
    assert run("p", raising(KeyboardInterrupt()), goes_on=lambda: True) == 130
    assert capsys.readouterr().err == "p: interrupted; the same command goes on from here\n"


@pytest.mark.parametrize("debug", [False, True])
def test_a_fault_is_one_line_and_70_and_shows_its_traceback_when_asked(debug, capsys, monkeypatch):
    if debug:
        monkeypatch.setenv(process.DEBUG, "1")
    else:
        monkeypatch.delenv(process.DEBUG, raising=False)
    assert run("p", lambda: 1 // 0) == 70
    *before, last = capsys.readouterr().err.splitlines()
    assert last.startswith("p: this is a fault of Lathe, please report it: ZeroDivisionError: ")
    assert "test_process.py:" in last
    assert (before[:1] == ["Traceback (most recent call last):"]) == debug
    assert bool(before) == debug


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_unwind_what_is_open_and_an_import_that_hides_them_hides_nothing(signum, capsys):
    closed = []

    def work():
        try:
            signal.raise_signal(signum)
        except KeyboardInterrupt:
            closed.append(True)
            raise ImportError("of something that was interrupted") from None

    before = signal.getsignal(signum)
    assert run("p", work) == 128 + signum
    assert signal.getsignal(signum) == before
    assert closed == [True]
    assert capsys.readouterr().err.endswith("; nothing was kept, give the same command again\n")


def test_a_signal_that_comes_twice_at_once_lets_the_first_clean_up(capsys):
    cleaned = []

    def work():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(signal.SIGINT)
            cleaned.append(True)

    assert run("p", work) == 130
    assert cleaned == [True]


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("p", lambda: signal.raise_signal(signal.SIGHUP) or 0) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def child(code: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-P", "-W", "error", "-c", code], stderr=subprocess.PIPE, text=True, **options
    )


def test_an_output_that_nobody_reads_or_that_is_full_is_no_traceback():
    code = "import sys; from latency.process import run; sys.exit(run('p', lambda: print('x' * 10) or 0))"
    reader, writer = os.pipe()
    os.close(reader)
    done = child(code, stdout=writer)
    assert (done.communicate()[1], done.returncode) == ("", 141)
    os.close(writer)
    with Path("/dev/full").open("w") as full:
        done = child(code, stdout=full)
        assert (done.communicate()[1], done.returncode) == ("p: No space left on device\n", 2)


def test_closed_streams_are_not_taken_by_the_next_file(tmp_path):
    path = tmp_path / "precious"
    code = (
        "import os, sys; from latency.process import run\n"
        f"def work():\n    file = open({str(path)!r}, 'w')\n    print('noise')\n    os.write(1, b'noise')\n    file.write('kept')\n"
        "    file.close()\n    return 0\n"
        "sys.exit(run('p', work))"
    )
    done = child(code, preexec_fn=lambda: [os.close(0), os.close(1)])
    assert (done.communicate()[1], done.returncode) == ("", 0)
    assert path.read_text() == "kept"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_modules_are_loaded_is_one_line(signum):
    code = (
        "import sys, time\n"
        "class Slow:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'lathe.cli':\n"
        "            print('loading', flush=True)\n"
        "            time.sleep(60)\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from lathe.__main__ import main\n"
        "main()"
    )
    process = child(code, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "loading\n"
    time.sleep(0.01)
    process.send_signal(signum)
    said = process.communicate()[1]
    assert said == f"lathe: ended by {signum.name}; nothing was begun\n"
    assert process.returncode == 128 + signum


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_when_all_is_said_leaves_the_exit_code_alone(signum):
    code = (
        "import atexit, sys, time\n"
        "atexit.register(lambda: (print('ending', flush=True), sys.stdin.readline()))\n"
        "from lathe.__main__ import main\n"
        "sys.argv = ['lathe', 'nonsense']\n"
        "main()"
    )
    process = child(code, stdout=subprocess.PIPE, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signum)
    time.sleep(0.05)
    assert process.communicate("\n")[1].startswith("lathe: 'nonsense' is unknown")
    assert process.returncode == 2
