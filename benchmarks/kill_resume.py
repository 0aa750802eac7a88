"""Kill searches at random moments and let them go on: every method must end with the bytes of a run that was never killed.

    python benchmarks/kill_resume.py --kills 20 --out benchmarks/kill_resume.md

Each kill is a SIGKILL to a forked process, at a moment drawn uniformly over the time that a whole run takes, so that it also falls into
writes and between phases. The toy method has Adam and RMSprop, two parts, dropout and noise.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "unit")]

from search import session  # noqa: E402
from search.budget import Budget  # noqa: E402
from unit.search import conftest  # noqa: E402
from unit.search.test_session import FILES, Problem, Toy, ToySettings  # noqa: E402

FEW = {"pretrain_epochs": 2, "search_epochs": 3, "finetune_epochs": 2}


def start(name: str, out: Path) -> None:
    """Run or go on with a method until it is finished."""
    space, data = conftest.make_tiny(), conftest.make_stripes()
    table = conftest.make_table(space)
    budget = 0.6 * table.predict(space.network()).us
    if name == "toy":
        method = Toy(ToySettings(epochs=3), Problem(space=space, table=table, task=data, budget=Budget(us=budget)))
    else:
        method = conftest.make_method(name, space, table, data, budget, **FEW)
    for _ in session.run(method, out):
        pass


def forked(name: str, out: Path, kill_after_s: float | None = None) -> bool:
    """Run in a process of its own; whether it was killed before it ended."""
    child = os.fork()
    if child == 0:
        start(name, out)
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"{name}: a run failed by itself")
    return os.WIFSIGNALED(status)


def contents(out: Path) -> list[bytes]:
    return [(out / name).read_bytes() for name in FILES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, lines, wrong = random.Random(0), [], 0
    for name in (*conftest.METHODS, "toy"):
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            forked(name, Path(folder) / "whole")
            whole_s = time.perf_counter() - begun
            killed = equal = 0
            for number in range(arguments.kills):
                out = Path(folder) / str(number)
                killed += forked(name, out, draw.uniform(0, whole_s))
                forked(name, out)
                equal += contents(out) == contents(Path(folder) / "whole")
        lines.append(f"| {name} | {arguments.kills} | {killed} | {equal} |")
        print(lines[-1], flush=True)
        wrong += equal != arguments.kills
    if arguments.out:
        head = "# Killed and resumed\n\n`python benchmarks/kill_resume.py`: runs killed at random moments, and then run to their end.\n"
        table = "\n| method | runs | killed before their end | byte for byte as never killed |\n|---|---|---|---|\n"
        arguments.out.write_text(head + table + "\n".join(lines) + "\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
