import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import search
from search import SearchError, processes

START = "import os, signal, sys, time; rank = int(os.environ['LOCAL_RANK'])\n"


def run(code: str, devices: int = 2) -> int:
    return processes.run([sys.executable, "-c", START + code], devices)


def test_every_process_knows_the_others_and_the_first_one_alone_is_heard(tmp_path, capfd):
    names = ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    code = f"print('heard', rank); open({str(tmp_path)!r} + f'/{{rank}}', 'w').write(','.join(os.environ[n] for n in {names}))"
    assert run(code, 3) == 0
    assert capfd.readouterr().out == "heard 0\n"
    told = [(tmp_path / str(rank)).read_text().split(",") for rank in range(3)]
    assert [one[:4] for one in told] == [[str(rank), "3", "0", "127.0.0.1"] for rank in range(3)]
    assert len({one[4] for one in told}) == 1


def test_the_exit_code_is_that_of_the_first_process(capfd):
    assert run("print('bad', file=sys.stderr); sys.exit(2)") == 2
    assert capfd.readouterr().err == "bad\n"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", r"^process 2 of 2 was ended by SIGKILL: the same command goes on$"),
        ("sys.stderr.write('first\\nout of memory\\n'); sys.exit(70)", r"^process 2 of 2 failed \(out of memory\): "),
    ],
)
def test_the_end_of_another_process_is_said(end, message):
    with pytest.raises(SearchError, match=message):
        run(f"if rank: {end}\nelse: sys.exit({processes.LOST})")


def test_a_first_process_that_was_killed_is_said(capfd):
    with pytest.raises(SearchError, match="^process 1 of 2 was ended by SIGKILL: the same command goes on$"):
        run(f"if rank: sys.exit({processes.LOST})\nos.kill(os.getpid(), signal.SIGKILL)")


def test_processes_that_do_not_notice_are_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "_GRACE_S", 0.1)
    pid = tmp_path / "pid"
    code = f"""
if rank:
    while not os.path.exists({str(pid)!r}): time.sleep(0.01)
    sys.exit(3)
open({str(pid)!r} + '.new', 'w').write(str(os.getpid())); os.rename({str(pid)!r} + '.new', {str(pid)!r})
time.sleep(600)
"""
    with pytest.raises(SearchError, match="^process 2 of 2 ended with exit code 3: the same command goes on$"):
        run(code)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_signal_ends_all_and_the_first_process_says_so(tmp_path):
    code = f"""
open({str(tmp_path)!r} + f'/{{rank}}', 'w').close()
try: time.sleep(600)
except KeyboardInterrupt: print('interrupted', rank, flush=True); sys.exit(130)
"""
    root = Path(search.__file__).parents[1]
    outer = f"import sys; sys.path.insert(0, {str(root)!r}); from search import processes\n"
    outer += f"sys.exit(processes.run([sys.executable, '-c', {START + code!r}], 2))"
    process = subprocess.Popen([sys.executable, "-c", outer], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 600
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=600) == ("interrupted 0\n", None)
    assert process.returncode == 130
