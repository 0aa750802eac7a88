"""A backend without a device: it knows what each key costs, and counts what it is asked for."""

import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import pytest

from latency import (
    BlockSpec,
    BuildFailed,
    Device,
    Lowered,
    Protocol,
    Row,
    RunFailed,
    Runtime,
    TableHeader,
    TableWriter,
    Workload,
)
from latency.lowered import overhead_onnx
from latency.measure import percentile

CPU = Device(
    kind="cpu",
    name="Test CPU",
    cores=4,
    threads=1,
    isa=("avx2",),
    memory_mib=8192,
    driver="",
    compute_capability="",
    os="Linux x86_64",
)
QUICK = Protocol(name="quick", warmup_ms=0.0, min_samples=10, max_samples=40, min_time_ms=0.0, max_time_ms=1000.0)


class FakeCompiled:
    def __init__(self, us: float, noise: float, fails: bool) -> None:
        self._us, self._noise, self._fails, self._random = us, noise, fails, random.Random(us)

    def run(self, count: int) -> list[float]:
        if self._fails:
            raise RunFailed("out of memory")
        return [self._us * math.exp(self._random.gauss(0, self._noise)) for _ in range(count)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        pass


class FakeBackend:
    """`noise` is per key; a key in `build_fails` or `run_fails` fails."""

    name, device, runtime, precision = "fake", CPU, Runtime(name="fake", version="1.0"), "fp32"
    settings, monitor, clock = {}, None, staticmethod(time.perf_counter_ns)

    def __init__(self, cost: Callable[[str], float] = lambda key: 10.0 + len(key)) -> None:
        self.cost, self.noise, self.compiled = cost, dict[str, float](), list[str]()
        self.build_fails, self.run_fails = set[str](), set[str]()

    def compile(self, model: bytes | Lowered) -> FakeCompiled:
        key = Lowered.of(model).key
        self.compiled.append(key)
        if key in self.build_fails:
            raise BuildFailed("unsupported operator Foo")
        return FakeCompiled(self.cost(key), self.noise.get(key, 0.001), key in self.run_fails)


def spec(c_in: int, c_out: int, op: str = "conv", size: int = 32) -> BlockSpec:
    return BlockSpec.of(op, attrs={"h": size, "w": size, "act": "relu"}, widths={"c_in": c_in, "c_out": c_out})


def key(name: str) -> str:
    """The key of a block so named."""
    return spec(8, 8, op=name).key


def write(path: Path, header: TableHeader, rows: Sequence[Row]) -> Path:
    with TableWriter(path, header) as writer:
        for row in rows:
            writer.append(row)
    return path


def block(c_in: int, c_out: int) -> Workload:
    return Workload.block(spec(c_in, c_out), overhead_onnx)


def row(key: str, samples_us: Sequence[float], **fields: object) -> Row:
    ordered = sorted(samples_us)
    middle = round((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2, 3)
    values = {"kind": "block", "status": "ok", "median_us": middle, "low_us": ordered[0], "high_us": ordered[-1]}
    percentiles = {"p90_us": percentile(samples_us, 0.90), "p99_us": percentile(samples_us, 0.99)}
    return Row(key=key, samples_us=tuple(samples_us), **{**values, **percentiles, **fields})


def header(**fields: object) -> TableHeader:
    values = {
        "device": CPU,
        "runtime": FakeBackend.runtime,
        "protocol": QUICK,
        "precision": "fp32",
        "lowering": "1",
        "space": "toy",
        "created": "2026-01-01",
    }
    return TableHeader(**{**values, **fields})


class Kit:
    """The helpers above, for tests that cannot import a conftest."""

    FakeBackend, CPU, QUICK = FakeBackend, CPU, QUICK
    spec, key, block, row, header = (
        staticmethod(spec),
        staticmethod(key),
        staticmethod(block),
        staticmethod(row),
        staticmethod(header),
    )


@pytest.fixture
def kit() -> type[Kit]:
    return Kit


@pytest.fixture
def rows(kit):
    """An overhead, and blocks over a complete grid of two widths."""
    return [
        kit.row("overhead", [2.0, 2.1, 2.2], kind="overhead"),
        *(
            kit.row(kit.spec(a, b).key, [a * b / 8 + 0.5, a * b / 8 + 1, a * b / 8 + 1.25])
            for a in (8, 16, 24)
            for b in (8, 16)
        ),
    ]


@pytest.fixture
def path(tmp_path, kit, rows):
    """A table of these rows."""
    return write(tmp_path / "t.latency.jsonl", kit.header(), rows)
