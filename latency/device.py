"""Fingerprints of the machine and the runtime that a latency was measured on."""

import os
import platform
import re
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Literal, cast

import msgspec

from latency.errors import FingerprintMismatch, LatencyError
from latency.values import Count

# Instruction sets by which CPU kernels are selected; other flags do not change which code runs.
_AVX = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"}
_AVX512 = {
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_bf16",
    "avx512_fp16",
    "avx512_vnni",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
}
_ARM = {"neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Fingerprint of a machine. Latencies may be pooled only if their fingerprints are equal.

    Attributes:
        kind: type of processor that runs the network.
        name: name of its model.
        cores: logical cores of the machine's CPU; 0 for a GPU, whose latency is measured on the GPU itself.
        threads: threads that the runtime may use; 0 for a GPU.
        isa: SIMD instruction sets of a CPU, sorted; empty for a GPU.
        memory_mib: memory of a CPU's machine in whole GiB, as firmware reserves a varying part of it; exact for a GPU.
        driver: version of the GPU's driver; "" for a CPU.
        compute_capability: of a GPU, such as `8.9`; "" for a CPU.
        os: operating system and architecture, such as `Linux x86_64`.
    """

    kind: Literal["cpu", "gpu"]
    name: str
    cores: Count
    threads: Count
    isa: tuple[str, ...]
    memory_mib: Count
    driver: str
    compute_capability: str
    os: str

    @classmethod
    def cpu(cls, threads: int = 1, *, proc: Path = Path("/proc")) -> "Device":
        """Return the fingerprint of this machine's CPU.

        Args:
            threads: number of threads that the runtime will use.
            proc: Linux's proc file system; on other systems the module `platform` is used.
        """
        cpuinfo = _read_text(proc / "cpuinfo")
        name = _field(cpuinfo, "model name") or _field(cpuinfo, "Model") or platform.processor() or platform.machine()
        flags = (_field(cpuinfo, "flags") or _field(cpuinfo, "Features")).split()
        memory_kib = (_field(_read_text(proc / "meminfo"), "MemTotal") or "0").split()[0]
        return cls(
            kind="cpu",
            name=name,
            cores=os.cpu_count() or 1,
            threads=threads,
            isa=tuple(sorted((_AVX | _AVX512 | _ARM).intersection(flags))),
            memory_mib=round(int(memory_kib) / 2**20) * 1024,
            driver="",
            compute_capability="",
            os=f"{platform.system()} {platform.machine()}",
        )


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Software that compiles and runs networks.

    Attributes:
        name: name of the backend, such as `onnxruntime`.
        version: version of the backend.
    """

    name: str
    version: str


def require_cores(threads: int) -> None:
    """Require a core for each thread: otherwise threads wait for one another, which would be part of the latency.

    Raises:
        LatencyError: this process may use fewer cores, or `threads` is below 1.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise LatencyError(f"--threads {threads}: this process may use {cores} cores, give 1 to {cores}")


def differences(
    a: msgspec.Struct, b: msgspec.Struct, *, ignored: Container[str] = (), prefix: str = ""
) -> Iterator[tuple[str, object, object]]:
    """Yield the fields, dotted if nested, in which two structs of one type differ, with both values.

    Args:
        a: the first struct.
        b: the second struct.
        ignored: names of fields to skip.
        prefix: start of every name.
    """
    for field in a.__struct_fields__:
        x, y, name = getattr(a, field), getattr(b, field), f"{prefix}{field}"
        if x == y or name in ignored:
            continue
        if isinstance(x, msgspec.Struct) and type(x) is type(y):
            yield from differences(x, y, ignored=ignored, prefix=f"{name}.")
        elif isinstance(x, dict) and isinstance(y, dict):
            first, second = cast("dict[str, object]", x), cast("dict[str, object]", y)
            for key in first | second:
                if first.get(key) != second.get(key):
                    yield f"{name}.{key}", first.get(key), second.get(key)
        else:
            yield name, x, y


def first_difference(a: msgspec.Struct, b: msgspec.Struct) -> tuple[str, object, object] | None:
    """Return the first of two structs' `differences`; None if they are equal."""
    return next(differences(a, b), None)


def require_equal(
    actual: msgspec.Struct, expected: msgspec.Struct, *, what: str = "the first", fix: str = "both must be equal"
) -> None:
    """Require equal fingerprints.

    Args:
        actual: actual fingerprint.
        expected: expected fingerprint.
        what: start of the error message: the owner of the actual fingerprint.
        fix: end of the error message: what the user can do.

    Raises:
        FingerprintMismatch: the fingerprints differ; names the field and both values.
    """
    if difference := first_difference(actual, expected):
        raise FingerprintMismatch(what, *difference, fix)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:  # not Linux
        return ""


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*?)\s*$", text, re.MULTILINE)
    return match[1] if match else ""
