"""Can a file break its reader? Every reader is fed damaged files, and may only read them or refuse them by a documented error in one line.

    python benchmarks/fuzz_readers.py --minutes 30

Valid files are the seeds. They are damaged by flipped bits, cuts, splices and, where they hold JSON, by values at the edges of what is
possible; hashes that seal a file are then made to fit again, so that the values are looked at. Children take the files, each file within a
limit on memory and time: a crash or a hang is recorded, and the next child goes on. Each file follows from its number: `--case N` feeds
one again. Prints a table and writes it to benchmarks/fuzz_readers.md; exit code 1 where something else than a documented error came.
"""

import argparse
import contextlib
import hashlib
import io
import json
import logging
import os
import random
import re
import resource
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploy import bundle, graph, onnxfile
from deploy.errors import DeployError
from latency import LatencyTable, blocks_zip, check, decoding
from latency.errors import LatencyError
from lathe import cli
from search import checkpoint, data, record, session
from search import report as pages
from search.architecture import load_architecture
from search.errors import SearchError
from search.network import load_weights

HERE = Path(__file__).parent
FORMATS = HERE.parent / "tests" / "formats"
MEMORY_BYTES, CPU_SECONDS, WAIT_SECONDS, CASES_A_CHILD = 4 * 2**30, 20.0, 200.0, 200
TIMERS = {signal.SIGPROF: (signal.ITIMER_PROF, CPU_SECONDS), signal.SIGALRM: (signal.ITIMER_REAL, WAIT_SECONDS)}
"""What limits a case: one that computes by its own time, whatever else runs; one that waits by the clock."""
EDGES = [
    0,
    1,
    -1,
    2,
    255,
    2**31,
    2**63,
    2**64,
    10**12,
    10**40,
    -(2**63),
    0.5,
    -0.0,
    1e-300,
    1e300,
    "",
    "0",
    "nan",
    "\0",
    "é" * 300,
    "../x",
]
EDGES += [None, True, False, [], {}, [[]], [0], {"": None}, "a" * 10_000]
DOCUMENTED = (LatencyError, DeployError, SearchError)
Draw = random.Random


@dataclass
class Reader:
    """A reader with what it reads."""

    name: str
    seeds: list[Path]
    """valid files; a reader of a directory is given a copy of the one that the seed is in"""
    read: Callable[[Path], object]
    damage: Callable[[bytes, Draw], bytes]


@dataclass
class Outcomes:
    """What came of the files of one reader."""

    counts: Counter = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)
    """what went wrong, with the number of the first case"""


def flipped(content: bytes, draw: Draw) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 1, 2, 8, 64])):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(content: bytes, draw: Draw) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def spliced(content: bytes, draw: Draw) -> bytes:
    start, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    to = draw.randrange(len(content) + 1)
    return (
        content[:to]
        + content[start:end]
        + content[to if draw.random() < 0.5 else min(len(content), to + end - start) :]
    )


def overwritten(content: bytes, draw: Draw) -> bytes:
    """A number, as binary formats have them, becomes one at an edge."""
    number = draw.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**13])
    code = draw.choice(["<I", ">I", "<Q", "<H"])
    packed = struct.pack(code, number % 2 ** (8 * struct.calcsize(code)))
    to = draw.randrange(len(content) + 1)
    return content[:to] + packed + content[to + len(packed) :]


def binary(content: bytes, draw: Draw) -> bytes:
    return draw.choice([flipped, flipped, cut, spliced, overwritten])(content, draw)


def edged(value: object, draw: Draw) -> object:
    """A JSON value with one of its parts replaced, removed, repeated or nested deeply."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        name = draw.choice(list(value))
        if draw.random() < 0.1:
            return {key: inner for key, inner in value.items() if key != name} | (
                {"colour": "red"} if draw.random() < 0.5 else {}
            )
        return value | {name: edged(value[name], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], *([edged(value[at], draw)] * draw.choice([1, 1, 1, 2, 0])), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and draw.random() < 0.5:
        return draw.choice([-value, value * 2, value + 1, value * 10**6, value / 3])
    return draw.choice(EDGES)


def json_text(content: bytes, draw: Draw) -> bytes:
    kind = draw.random()
    if kind < 0.3:
        return binary(content, draw)
    if kind < 0.33:
        return content.replace(b"{", b'{"x":' + b"[" * draw.choice([10, 10**5]), 1)
    return json.dumps(edged(json.loads(content), draw), ensure_ascii=draw.random() < 0.5, indent=2).encode()


def json_lines(content: bytes, draw: Draw) -> bytes:
    lines = content.splitlines()
    at = draw.randrange(len(lines))
    lines[at] = b" ".join(json_text(lines[at], draw).split(b"\n"))
    return b"\n".join(lines) + b"\n"


def table(content: bytes, draw: Draw) -> bytes:
    """Half of the time sealed again, so that the checks of the lines fit what they say."""
    if draw.random() < 0.3:
        return binary(content, draw)
    lines = [re.sub(rb',"check":"[0-9a-f]{12}"}$', b"}", line) for line in content.splitlines()]
    at = draw.randrange(len(lines))
    made = edged(json.loads(lines[at]), draw)
    lines[at] = json.dumps(made, separators=(",", ":"), ensure_ascii=False).encode()
    sealed, seal = [], ""
    for line in lines:
        seal = hashlib.sha256(seal.encode() + line).hexdigest()[:12]
        sealed.append(line[:-1] + f',"check":"{seal}"}}\n'.encode())
    return b"".join(sealed)


def block_bundle(content: bytes, draw: Draw) -> bytes:
    """Half of the time a file inside is damaged, and its hash made to fit."""
    if draw.random() < 0.4:
        return binary(content, draw)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice(list(files))
    if draw.random() < 0.5 or name == "index.json":
        files["index.json"] = json_text(files["index.json"], draw)
    else:
        before, files[name] = files[name], model(files[name], draw)
        hashes = [hashlib.sha256(graph).hexdigest().encode() for graph in (before, files[name])]
        files["index.json"] = files["index.json"].replace(*hashes)
    packed = io.BytesIO()
    with zipfile.ZipFile(
        packed, "w", draw.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_LZMA])
    ) as archive:
        for name, inside in files.items():
            archive.writestr(name, inside)
    return packed.getvalue()


def tensors(content: bytes, draw: Draw) -> bytes:
    """Half of the time the header's JSON is damaged, and its length made to fit."""
    if draw.random() < 0.5:
        return binary(content, draw)
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if "state" in header.get("__metadata__", {}) and draw.random() < 0.7:
        header["__metadata__"]["state"] = json_text(header["__metadata__"]["state"].encode(), draw).decode(
            errors="replace"
        )
    else:
        header = edged(header, draw)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def npy(content: bytes, draw: Draw) -> bytes:
    if draw.random() < 0.5:
        return binary(content, draw)
    shape = ",".join(str(draw.choice([0, 1, 3, -1, 10**13, 2**64])) for _ in range(draw.randrange(5)))
    descr = draw.choice(["<f4", ">f8", "|O", "|b1", "<U9", "<f3", "<c16", "<M8", "V0", "<i8"])
    header = f"{{'descr': '{descr}', 'fortran_order': {draw.choice(['True', 'False', '1'])}, 'shape': ({shape}), }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content[128:]


def manifest(content: bytes, draw: Draw) -> bytes:
    """Damaged, and then sealed again."""
    made = json_text(content, draw)
    blank = re.sub(rb'"seal": "[^"]*"\n}\n?\Z', b'"seal": "' + b"0" * 64 + b'"\n}\n', made)
    return blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode()) if draw.random() < 0.8 else made


def model(content: bytes, draw: Draw) -> bytes:
    """Half of the time a dimension, an attribute or a name of the graph is replaced."""
    if draw.random() < 0.5:
        return binary(content, draw)
    made = onnx.load_from_string(content)
    node = draw.choice(made.graph.node)
    match draw.randrange(6):
        case 0 if made.graph.initializer:
            draw.choice(made.graph.initializer).dims.append(draw.choice([0, -1, 2**40, 10**13]))
        case 1 if made.graph.input[0].type.tensor_type.shape.dim:
            draw.choice(made.graph.input[0].type.tensor_type.shape.dim).dim_value = draw.choice(
                [0, -1, 2**40, 2**63 - 1]
            )
        case 2:
            node.op_type = draw.choice(["", "Identity", "Loop", "If", "Expand", "NoSuch"])
        case 3 if node.attribute:
            draw.choice(node.attribute).i = draw.choice([0, -1, 2**62])
        case 4:
            node.input[draw.randrange(len(node.input))] = draw.choice(["", "nothing", node.output[0]])
        case _:
            made.ir_version, made.opset_import[0].version = draw.choice([0, 3, 99]), draw.choice([0, 1, 99])
    return made.SerializeToString()


def valid_files(directory: Path) -> dict[str, list[Path]]:
    """A small search, an export and files of every kind, made by the commands themselves."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("LeakyRelu", ["m"], ["y"], alpha=0.1)]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    (directory / "model.onnx").write_bytes(
        helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    run, shipped = directory / "run", directory / "shipped"
    epochs = [part for phase in ("pretrain", "search", "finetune") for part in (f"--{phase}-epochs", "1")]
    said(["search", "pas", "--space", "repvgg-mini", "--budget-fraction", "0.6", *epochs, "--out", str(run)])
    said(["export", str(directory / "model.onnx"), "--protocol", "fast", "--out", str(shipped)])
    np.save(directory / "samples.npy", np.ones((8, 4), np.float32))
    np.savez_compressed(directory / "samples.npz", x=np.ones((8, 4), np.float32), y=np.arange(8))
    pictures = []
    for suffix in ("png", "jpg", "bmp", "webp"):
        for label in ("a", "b"):
            for number in range(2):
                path = directory / f"images-{suffix}" / label / f"{number}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng(number).integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(path)
        pictures.append(path)
    inside = {name: [run / name] for name in (record.ARCHITECTURE, record.RUN, record.RESULT, record.HISTORY)}
    return inside | {
        "checkpoint": [run / record.CHECKPOINT],
        "weights": [run / record.WEIGHTS],
        "manifest": [shipped / bundle.MANIFEST],
        "onnx": [directory / "model.onnx"],
        "npy": [directory / "samples.npy"],
        "npz": [directory / "samples.npz"],
        "images": pictures,
        "table": sorted(FORMATS.glob("*.latency.jsonl")),
        "blocks": sorted(FORMATS.glob("*.blocks.zip")),
    }


def said(arguments: list[str]) -> None:
    """Run a command of the product; its output is shown only where it fails."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            cli.main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise SystemExit(f"{' '.join(arguments)}: {printed.getvalue()}") from None


def readers(seeds: dict[str, list[Path]]) -> list[Reader]:
    """Every reader of the product."""
    network = load_architecture(seeds[record.ARCHITECTURE][0]).build()
    run = record.read_run(seeds[record.RUN][0].parent)

    def used_table(path: Path) -> object:
        found = LatencyTable.load(path)
        return found.predictor, check.check(found)

    def used_blocks(path: Path) -> object:
        return [work.lower() for work in blocks_zip.read(path).workloads[:3]]

    return [
        Reader("latency table", seeds["table"], used_table, table),
        Reader("bundle of blocks", seeds["blocks"], used_blocks, block_bundle),
        Reader(
            "architecture.json", seeds[record.ARCHITECTURE], lambda path: load_architecture(path).network(), json_text
        ),
        Reader("run.json", seeds[record.RUN], lambda path: record.read_run(path.parent), json_text),
        Reader("result.json", seeds[record.RESULT], lambda path: record.read_result(path.parent, run), json_text),
        Reader(
            "history.jsonl",
            seeds[record.HISTORY],
            lambda path: (record.read_history(path.parent, run), pages.page_of(path.parent)),
            json_lines,
        ),
        Reader(
            "checkpoint.safetensors", seeds["checkpoint"], lambda path: checkpoint.load(path, session._Head), tensors
        ),
        Reader("weights.safetensors", seeds["weights"], lambda path: load_weights(network, path, {}), tensors),
        Reader("manifest.json", seeds["manifest"], lambda path: bundle.check_files(bundle.load(path.parent)), manifest),
        Reader("samples.npy", seeds["npy"], decoding.read_npy, npy),
        Reader("samples.npz", seeds["npz"], decoding.read_npz, binary),
        Reader("folder of images", seeds["images"], lambda path: data.folder(path.parents[1], 8), binary),
        Reader("ONNX file", seeds["onnx"], lambda path: graph.parse_model(onnxfile.read_model(path)), model),
    ]


def one(known: list[Reader], number: int) -> tuple[str, str, str]:
    """Feed one case; its reader, `read`, `refused` or `fault`, and what was raised."""
    draw = Draw(number)
    reader = known[number % len(known)]
    seed = draw.choice(reader.seeds)
    content = seed.read_bytes()
    damaged = reader.damage(content, draw)
    try:
        seed.write_bytes(damaged)
        reader.read(seed)
    except DOCUMENTED as error:
        lines = str(error).count("\n")
        return (
            reader.name,
            "fault" if lines else "refused",
            f"{type(error).__name__} of {lines + 1} lines" if lines else "",
        )
    except BaseException as error:  # noqa: BLE001  what is not documented is what is looked for
        where = traceback.extract_tb(error.__traceback__)
        ours = [
            frame for frame in where if "site-packages" not in frame.filename and Path(frame.filename) != Path(__file__)
        ]
        at = f"{Path(ours[-1].filename).relative_to(HERE.parent)}:{ours[-1].lineno}" if ours else "?"
        return reader.name, "fault", f"{type(error).__name__} at {at}: {' '.join(str(error).split())[:120]}"
    finally:
        seed.write_bytes(content)
    return reader.name, "read", ""


def child(known: list[Reader], cases: range, pipe: int) -> None:
    """Feed cases in this process, and write a line on each; never returns."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    used = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for signum in TIMERS:
        signal.signal(signum, signal.SIG_DFL)
    for number in cases:
        for timer, seconds in TIMERS.values():
            signal.setitimer(timer, seconds)
        line = json.dumps([number, *one(known, number)])
        for timer, _ in TIMERS.values():
            signal.setitimer(timer, 0)
        os.write(pipe, line.encode() + b"\n")
    os._exit(0)


def fed(known: list[Reader], cases: range) -> Iterator[tuple[int, str, str, str]]:
    """Feed cases to a child; one that crashes or hangs ends it, and is the last that is said."""
    originals = {seed: seed.read_bytes() for reader in known for seed in reader.seeds}
    receive, send = os.pipe()
    if (pid := os.fork()) == 0:
        child(known, cases, send)
    os.close(send)
    done = cases.start
    with os.fdopen(receive) as lines:
        for line in lines:
            number, name, outcome, detail = json.loads(line)
            done = number + 1
            yield number, name, outcome, detail
    _, status = os.waitpid(pid, 0)
    for seed, content in originals.items():
        seed.write_bytes(content)
    if status:
        name = known[done % len(known)].name
        ended = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
        yield done, name, "hang" if ended in {signum.name for signum in TIMERS} else "crash", ended


def fuzz(known: list[Reader], minutes: float, first: int) -> dict[str, Outcomes]:
    """Feed cases for so long."""
    found: dict[str, Outcomes] = defaultdict(Outcomes)
    end, number = time.monotonic() + 60 * minutes, first
    while time.monotonic() < end:
        for case, name, outcome, detail in fed(known, range(number, number + CASES_A_CHILD)):
            number = case + 1
            found[name].counts[outcome] += 1
            if outcome not in ("read", "refused"):
                found[name].faults.setdefault(f"{outcome}: {detail}", case)
                print(f"{name}, case {case}: {outcome}: {detail}", file=sys.stderr)
    return found


def page(found: dict[str, Outcomes], known: list[Reader], minutes: float) -> str:
    """The outcomes as Markdown."""
    kinds = ("read", "refused", "fault", "crash", "hang")
    lines = [
        "# Damaged files, and what their readers do",
        "",
        f"`python benchmarks/fuzz_readers.py --minutes {minutes:g}`: {sum(sum(o.counts.values()) for o in found.values()):,} files. Read: what "
        "is left is still valid. Refused: by a documented error of one line. Everything else is a fault.",
        "",
        f"Each file within {MEMORY_BYTES / 2**30:.0f} GiB beyond what the process has, {CPU_SECONDS:.0f} s of its own time "
        f"and {WAIT_SECONDS:.0f} s by the clock.",
        "",
        "| reader | " + " | ".join(kinds) + " |",
        "|---|" + "---:|" * len(kinds),
        *(f"| {r.name} | " + " | ".join(f"{found[r.name].counts[kind]:,}" for kind in kinds) + " |" for r in known),
    ]
    faults = [f"- {r.name}: {words} (case {case})" for r in known for words, case in found[r.name].faults.items()]
    return "\n".join([*lines, "", *(["Faults:", "", *faults] if faults else ["No fault."]), ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="feed one case here, and show what it raises")
    parser.add_argument("--out", type=Path, default=HERE / "fuzz_readers.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable()
    with tempfile.TemporaryDirectory() as directory:
        known = readers(valid_files(Path(directory)))
        for reader in known:  # what is refused is then refused for its damage
            for seed in reader.seeds:
                reader.read(seed)
        if given.case is not None:
            print(one(known, given.case))
            return 0
        found = fuzz(known, given.minutes, given.first)
    text = page(found, known, given.minutes)
    given.out.write_text(text)
    print(text)
    return int(any(outcomes.faults for outcomes in found.values()))


if __name__ == "__main__":
    sys.exit(main())
