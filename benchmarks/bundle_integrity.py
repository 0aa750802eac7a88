"""Can a bundle lie? Damage of every kind to each of its files, and what `lathe verify` says; and killed exports.

    python benchmarks/bundle_integrity.py

Prints a table and writes it to benchmarks/bundle_integrity.md. A few minutes on one core; needs no quiet machine.
"""

import contextlib
import io
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from outcome import verdicts

from deploy import export, load, verify
from latency import protocol
from lathe import cli
from search import spaces

HERE = Path(__file__).parent
FLIPS, CUTS, KILLS = 100, 30, 20
Damage = Iterator[tuple[set[str], Callable[[Path], object]]]
"""Names of the files that it touches, and what does it."""

EXPORT = """
import sys, torch
from deploy import export
from latency import protocol
from search import spaces
print("begun", flush=True)
export(spaces.get("repvgg-mini").module(), torch.zeros(1, 3, 32, 32), target="onnxruntime", out=sys.argv[1], protocol=protocol.FAST)
"""


def lathe_verify(directory: Path) -> tuple[int, set[str]]:
    """Exit code of `lathe verify`, and the checks that fail."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            cli.main(["verify", str(directory), "--json"])
        except SystemExit as stop:
            code = int(stop.code or 0)
    checks = json.loads(printed.getvalue())["verification"]["checks"]
    return code, {check["name"] for check in checks if check["verdict"] == "failed"}


def flips(original: Path, draw: random.Random) -> Damage:
    names = sorted(path.name for path in original.iterdir())
    for _ in range(FLIPS):
        name = draw.choice(names)
        content = bytearray((original / name).read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield {name}, lambda copy, name=name, content=content: (copy / name).write_bytes(content)


def cuts(original: Path, draw: random.Random) -> Damage:
    names = sorted(path.name for path in original.iterdir())
    for _ in range(CUTS):
        name = draw.choice(names)
        content = (original / name).read_bytes()
        end = draw.randrange(len(content))
        yield {name}, lambda copy, name=name, content=content[:end]: (copy / name).write_bytes(content)


def removals(original: Path, _: random.Random) -> Damage:
    for path in sorted(original.iterdir()):
        yield {path.name}, lambda copy, name=path.name: (copy / name).unlink()


def swaps(original: Path, _: random.Random) -> Damage:
    for one, other in itertools.combinations(sorted(path.name for path in original.iterdir()), 2):

        def swap(copy: Path, one: str = one, other: str = other) -> None:
            (copy / one).rename(copy / "aside")
            (copy / other).rename(copy / one)
            (copy / "aside").rename(copy / other)

        yield {one, other}, swap


def strangers(original: Path, _: random.Random) -> Damage:
    for path in sorted(original.iterdir()):
        name = f"{path.stem}-2{path.suffix}"
        yield {name}, lambda copy, path=path, name=name: shutil.copy(path, copy / name)


def named(original: Path, damages: Damage, work: Path) -> tuple[int, int]:
    """How often the exit code was 1 and exactly the damaged files were named; and of how many."""
    found, total = 0, 0
    for names, damage in damages:
        copy = Path(shutil.copytree(original, work / "copy"))
        damage(copy)
        # Nothing that a damaged manifest says of other files can be relied on.
        wanted = {"manifest.json"} if "manifest.json" in names else names
        found, total = found + (lathe_verify(copy) == (1, wanted)), total + 1
        shutil.rmtree(copy)
    return found, total


def kills(work: Path) -> dict[str, int]:
    """Export over an older bundle, killed at random moments; what then lies there."""
    out, draw, killed, broken = work / "killed", random.Random(0), 0, 0
    command = [sys.executable, "-c", EXPORT, str(out)]

    def run(limit_s: float) -> tuple[bool, float]:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            begun = time.perf_counter()
            try:
                process.wait(limit_s)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            return process.wait() == -signal.SIGKILL, time.perf_counter() - begun

    _, took_s = run(60)
    while killed < KILLS:
        killed += run(draw.uniform(0.3, 1.0) * took_s)[0]
        broken += bool(verify(out).failures)
    run(60)
    return {
        "kills": killed,
        "broken": broken,
        "left over": sum(path.name.startswith(".killed") for path in work.iterdir()),
    }


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        model, image = spaces.get("repvgg-mini").module(), torch.zeros(1, 3, 32, 32)
        for target in ("onnxruntime", "tensorrt-rtx"):
            made = export(model, image, target=target, out=work / target, protocol=protocol.FAST).directory
            assert lathe_verify(made) == (0, set()), "a whole bundle passes"
            files = len(load(made).manifest.files) + 1
            for what, damage in (
                ("one bit flipped in one byte", flips),
                ("truncated", cuts),
                ("missing", removals),
                ("two files swapped", swaps),
                ("a file too many", strangers),
            ):
                found, total = named(made, damage(made, random.Random(0)), work)
                rows.append((f"{target}, {files} files: {what}", f"{found} of {total} named", "all", found == total))
        killed = kills(work)
        rows.append(
            (
                "exports killed over an older bundle",
                json.dumps(killed),
                "none broken, nothing left",
                sum(killed.values()) == KILLS,
            )
        )
    lines = [
        "Named: exit code 1, and exactly the damaged files fail (manifest.json alone where it is one of them).",
        "",
    ]
    lines += verdicts(rows)
    print("\n".join(lines))
    (HERE / "bundle_integrity.md").write_text("\n".join(lines) + "\n")
    sys.exit(not all(row[3] for row in rows))


if __name__ == "__main__":
    main()
