"""The directory that ships: its manifest, writing it atomically, and detecting changes in it."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import onnx
import safetensors.numpy

from deploy import graph
from deploy.certificate import Certificate
from deploy.errors import BundleError, LoweringError
from deploy.explanation import Explanation
from deploy.graph import Precision
from deploy.inspection import Inspection
from deploy.metric import ACCURACY, Figure, Metric
from deploy.samples import DTYPES, Samples, Tensors, TensorSpec, samples_of
from deploy.shapes import Span, shapes_at
from deploy.validate import BudgetVerdict, Step, judge_latency
from latency import Device, Latency, Measurement, Protocol, Runtime, files
from latency.decoding import MAX_JSON_BYTES, convert, decode_json, decode_tensors
from latency.errors import FileError
from latency.measure import summarize
from latency.units import Unit, interval, unit_for
from latency.values import Count, SampleUs, Sha256

MANIFEST = "manifest.json"
# bundle/1: one float32 input, `input_shape`, batch first; `outputs` by name, batch first.
# bundle/2: `inputs` and `dtypes` by name, with full shapes; `not_finite` and `rounding` of a comparison; the reference
# holds the inputs and outputs of each call; percentiles and `reason` of a measurement, `origin` of a prediction.
# bundle/3: `metric`, with a `score` for networks and steps, which had an `accuracy` in bundle/2.
SCHEMA = "bundle/3"
ONNX, ENGINE, REFERENCE = "model.onnx", "model.engine", "reference.safetensors"
HALF = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx"}
"""File names of the network in a narrow precision."""
TIMING_CACHE, SCRIPT, README = "model.timing_cache", "run.py", "README.md"
_SEAL = re.compile(rb'(?<="seal": ")[0-9a-f]{64}(?="\n}\n\Z)')
_NO_SEAL = "0" * 64
"""Stands in the place of the seal in the text whose hash the seal is."""

RANDOM = "drawn at random, as none were given"
"""Description of random samples, which prove less than real ones."""

Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network in the chain from its architecture to its engine."""

    name: str
    sha256: Sha256
    """hash of the file, or of the tensors if the form is not in the bundle"""
    made_from: str
    """name of the previous form; "" for the first"""
    file: str = ""
    """file in the bundle; "" if only the hash is kept"""


class EngineBuilds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several builds of one engine, of which one ships."""

    count: Count
    different: Count
    """number of different engines, compared by their bytes"""
    medians_us: tuple[SampleUs, ...] = ()
    """median latency of each different engine, timed in turns; the fastest ships"""
    reason: str = ""
    """why they were not timed, in which case the first ships"""

    def __str__(self) -> str:
        if self.different == 1:
            return f"{self.count} builds are the same engine"
        different = f"{self.count} builds are {self.different} different engines"
        if not self.medians_us:
            return f"{different}; the first one ships, as they were not timed: {self.reason}"
        low, high, unit = min(self.medians_us), max(self.medians_us), unit_for(self.medians_us)
        return (
            f"{different}, from {unit.number(low)} to {unit.words(high)} ({high / low - 1:.1%} apart); the fastest "
            "ships"
        )


class LayerWidth(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Remaining output channels of a layer."""

    name: str
    kept: Count
    of: Count


class NetworkSummary(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size, quality and speed of one network, as deployed."""

    params: Count
    macs: Count
    """multiply-accumulates of convolutions and linear layers for one sample"""
    score: Figure | None
    """the metric on the bundle's samples in the shipped precision; None if there is no metric"""
    predicted: Latency | None
    """latency of one batch predicted by a latency table"""
    measured: Measurement | None
    """latency of one batch on `Manifest.device`; both networks are timed in turns in one run"""
    not_measured: str = ""
    """why `measured` is None"""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All facts about a bundle: manifest.json."""

    schema: Literal["bundle/3"] = SCHEMA
    created: str
    """ISO 8601, UTC"""
    target: Target
    precision: Precision
    """precision of the shipped network's arithmetic; inputs and outputs have the types in `dtypes`"""
    io: Precision = "fp32"
    """precision of the floating-point inputs and outputs"""
    int8_nodes: Count = 0
    """number of nodes with dequantised operands: INT8 in the exported file, with `precision` around them"""
    inputs: dict[str, tuple[Count, ...]]
    """shape of each input by name, in order"""
    outputs: dict[str, tuple[Count, ...]]
    """shape of each output by name, in order"""
    dtypes: dict[str, str]
    """numpy type name of every input and output"""
    spans: dict[str, Span] = {}
    """spans of inputs with several shapes, of which `inputs` has the usual one"""
    output_spans: dict[str, Span] = {}
    """spans of outputs whose shapes depend on those inputs"""
    samples: Count
    """number of samples used in validation"""
    samples_from: Literal["given", "random"]
    metric: Metric | None
    """metric of the scores; None if the quality of outputs is unknown"""
    classes: tuple[str, ...]
    """names of the outputs"""
    preprocessing: dict[str, Any]
    """preprocessing from an image file to the input, as recorded by the trainer"""
    shipped: NetworkSummary
    unpruned: NetworkSummary | None
    budget_us: SampleUs | None
    """latency budget of one batch"""
    budget_verdict: BudgetVerdict
    layers: tuple[LayerWidth, ...]
    validation: tuple[Step, ...]
    device: Device | None
    """device on which latencies were measured; None if none could be"""
    runtime: Runtime
    protocol: Protocol
    build: dict[str, Any]
    """options of the engine's build"""
    builds: EngineBuilds | None = None
    """the builds, if the engine was built several times"""
    compute_capabilities: tuple[str, ...]
    """compute capabilities of the GPUs that the engine is for; empty for all GPUs that its runtime supports"""
    certificate: Certificate | None = None
    """why the network may run in half precision; None if it ships in FP32"""
    explanation: Explanation | None = None
    """where half precision breaks the network; None if not requested"""
    inspection: Inspection | None = None
    """layers of the engine of a network in a narrow precision, as reported by the engine inspector"""
    lowering: str
    versions: dict[str, str]
    """versions of the packages that made the bundle"""
    provenance: dict[str, str]
    """hashes and facts about the network's origin, as given by the caller"""
    chain: tuple[Link, ...]
    files: dict[str, Sha256]
    """sha256 of every other file of the bundle"""
    seal: str = ""
    """sha256 of manifest.json with zeros in this place"""

    def __post_init__(self) -> None:
        if wrong := self.dtypes.keys() ^ (self.inputs.keys() | self.outputs.keys()):
            raise ValueError(f"field `dtypes` is not of its inputs and outputs: {min(wrong)!r}")

    @property
    def half(self) -> str:
        """File name of the network in its narrow precision; "" if there is none."""
        name = HALF.get(self.precision, "")
        return name if name in self.files else ""

    @property
    def arithmetic(self) -> str:
        """Arithmetic of the shipped network, in words."""
        nodes = f"{self.int8_nodes} node{'s' * (self.int8_nodes != 1)}"
        return f"{self.precision}, and INT8 in {nodes}" if self.int8_nodes else self.precision

    @property
    def failures(self) -> list[str]:
        """Each failed verdict, in words. Steps that were not run and uncertain latencies are not failures."""
        return self.failures_in(unit_for([self.budget_us or 0.0]))

    def failures_in(self, unit: Unit) -> list[str]:
        """Return `failures` with latencies in the given unit."""
        lines = [f"{step.name} {step.precision}: {step.reason}" for step in self.validation if step.verdict == "failed"]
        if self.budget_verdict == "missed" and self.shipped.measured and self.budget_us:
            lines.append(
                f"latency: {interval(self.shipped.measured, unit)}, the budget is {unit.words(self.budget_us)}"
            )
        return lines


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    directory: Path
    manifest: Manifest

    def read(self, file: str) -> bytes:
        """Read a file of the bundle and check it against the manifest.

        Raises:
            BundleError: the file is missing, changed or not a regular file, or the manifest does not list it.
        """
        try:
            data = b"" if (problem := _misplaced(self.directory, file)) else files.read_bytes(self.directory / file)
        except FileError as error:
            problem, data = error.problem, b""
        if file not in self.manifest.files:
            problem = f"is not in its {MANIFEST}"
        elif not problem and sha256(data) != self.manifest.files[file]:
            problem = "was changed"
        if problem:
            raise BundleError(f"{self.directory}: {file} {problem}: {self._rebuilding(file)}")
        return data

    def misfit(self, device: Device, runtime: Runtime) -> str:
        """Return why a GPU and TensorRT version cannot load the engine, with the command that rebuilds it.

        "" if they can.
        """
        manifest, here = self.manifest, device.compute_capability
        if runtime.version != manifest.runtime.version and not manifest.build.get("version_compatible"):
            return (
                f"{ENGINE} is of {runtime.name} {manifest.runtime.version}, here is {runtime.version}: "
                f"{self._rebuilding(ENGINE)}"
            )
        if manifest.compute_capabilities and here not in manifest.compute_capabilities:
            capabilities = ", ".join(manifest.compute_capabilities)
            return (
                f"{ENGINE} is for compute capability {capabilities}, this {device.name} has {here}: "
                f"{self._rebuilding(ENGINE)}"
            )
        return ""

    def _rebuilding(self, file: str) -> str:
        source = self.directory / ONNX if file == ENGINE else "SOURCE"
        return f"build it again with `lathe export {source} --target {self.manifest.target} --out NEW`"


def sha256(data: bytes) -> str:
    """Return the hash by which artefacts refer to each other."""
    return hashlib.sha256(data).hexdigest()


def refuse_occupied(out: Path) -> None:
    """Require that `out` may be replaced by a bundle: it is absent, empty, or holds only an unchanged older bundle.

    Raises:
        BundleError: `out` holds something else.
    """
    if not os.path.lexists(out):
        return
    if not out.is_dir() or out.is_symlink():
        raise BundleError(f"{out} exists and is not a directory; give another --out")
    if not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise BundleError(f"{out} exists and holds something else than a bundle; give another --out, or remove it")
    try:
        older = load(out)
    except BundleError as error:
        raise BundleError(
            f"a bundle is in the way, and not as it was written: {error}; give another --out, or remove it"
        ) from error
    for name, problem in check_files(older).items():
        if name not in older.manifest.files:
            raise BundleError(
                f"{out} holds a bundle and also {name}, which would be lost; give another --out, or move it away"
            )
        if problem != _MISSING:
            raise BundleError(
                f"{out} holds a bundle whose {name} {problem}, which would be lost; give another --out, or remove it"
            )


def write_bundle(out: Path, manifest: Manifest, content: Mapping[str, bytes]) -> Bundle:
    """Write a bundle atomically: next to its place first, then renamed. An older bundle there is replaced.

    Args:
        out: directory of the bundle.
        manifest: manifest, whose `files` and `seal` are filled in.
        content: content of every other file, by name.

    Raises:
        BundleError: `out` holds something else, or cannot be written.
    """
    _remove_leftovers(out)
    refuse_occupied(out)
    manifest = msgspec.structs.replace(manifest, files={name: sha256(data) for name, data in sorted(content.items())})
    sealed = _sealed(manifest)
    with whole_directory(out) as fresh:
        for name, data in {**content, MANIFEST: sealed}.items():
            with (fresh / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    return load(out)


@contextlib.contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """Provide a new directory that replaces `out` at the end; on failure, `out` is unchanged.

    Raises:
        BundleError: `out` cannot be written.
    """
    fresh, old = (out.parent / f".{out.name}.{os.getpid()}.{kind}" for kind in ("new", "old"))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        fresh.mkdir()
        yield fresh
        if out.exists():
            out.rename(old)
        fresh.rename(out)
    except OSError as error:
        raise BundleError(f"{out} cannot be written: {error.strerror}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)


def _remove_leftovers(out: Path) -> None:
    """Remove leftovers of killed writers next to a bundle, and restore a bundle that one of them had moved away."""
    if not out.parent.is_dir():
        return
    for path in list(out.parent.iterdir()):
        left = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.(new|old)", path.name)
        if left and not _is_running(int(left[1])):
            if left[2] == "old" and not out.exists():
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's process
    return pid != os.getpid()


def load(directory: str | Path) -> Bundle:
    """Read a bundle's manifest; `Bundle.read` then checks each requested file.

    Raises:
        BundleError: the directory is not a bundle, or its manifest cannot be read or was changed.
    """
    directory = Path(directory)
    if not os.path.lexists(directory / MANIFEST):
        if any((directory / name).exists() for name in (ONNX, ENGINE, REFERENCE)):
            raise ChangedManifest(directory, "is missing")
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}; make one with `lathe export`")
    if (directory / MANIFEST).is_symlink():
        raise BundleError(
            f"{directory / MANIFEST} is a link: a bundle holds regular files only; copy it with what the link leads to"
        )
    with files.raised_as(BundleError, "give the directory that `lathe export` wrote"):
        data = files.read_bytes(directory / MANIFEST, limit=MAX_JSON_BYTES)
    if not (seal := _SEAL.search(data)) or seal[0] != _seal_of(data):
        raise ChangedManifest(directory, "was changed")
    with files.raised_as(BundleError, "export again, or read it by the version of Lathe that wrote it"):
        fields = decode_json(data, dict, directory / MANIFEST)
        is_first = fields.get("schema") == "bundle/1"
        if is_first:
            fields = _upgrade_1(directory, fields)
        if fields.get("schema") == "bundle/2":
            fields = _upgrade_2(fields)
        manifest = convert(fields, Manifest, directory / MANIFEST)
        return Bundle(directory, _rejudged(manifest) if is_first else manifest)


class ChangedManifest(BundleError):
    """A manifest was changed after it was written."""

    def __init__(self, directory: Path, how: str) -> None:
        super().__init__(
            f"{directory}: {MANIFEST} {how} after it was written: export again with `lathe export SOURCE --out "
            f"{directory}`"
        )
        self.how = how


def _upgrade_1(directory: Path, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of bundle/2 from those of bundle/1, where only the ONNX file has the name of the input."""
    try:
        parsed = graph.parse_model(files.read_bytes(directory / ONNX)).graph
    except (FileError, LoweringError):
        parsed = onnx.GraphProto()  # `check_files` reports that the file is missing or was changed
    name = parsed.input[0].name if parsed.input else "input"
    outputs = fields["outputs"] if isinstance(fields.get("outputs"), dict) else {}
    inputs = {name: fields.pop("input_shape", None)}
    return {**fields, "schema": "bundle/2", "inputs": inputs, "dtypes": dict.fromkeys((name, *outputs), "float32")}


def _upgrade_2(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of bundle/3 from those of bundle/2, whose metric was accuracy."""

    def scored(part: Any) -> Any:
        if not isinstance(part, dict) or "accuracy" not in part:
            return part
        kept = {name: value for name, value in part.items() if name != "accuracy"}
        share = part["accuracy"]
        figure = (
            {"value" if name == "share" else name: value for name, value in share.items()}
            if isinstance(share, dict)
            else share
        )
        return {**kept, "score": figure}

    networks = {name: scored(fields[name]) for name in ("shipped", "unpruned") if name in fields}
    steps = fields.get("validation")
    validation = {"validation": [scored(step) for step in steps]} if isinstance(steps, list) else {}
    known = any(isinstance(network, dict) and network.get("score") for network in networks.values())
    return {
        **fields,
        **networks,
        **validation,
        "schema": SCHEMA,
        "metric": msgspec.to_builtins(ACCURACY) if known else None,
    }


def _rejudged(manifest: Manifest) -> Manifest:
    """Summarise the samples of a bundle/1 manifest by today's rules, if its figures follow from them.

    Otherwise return it unchanged.

    The version that wrote it did not check for two modes, nor the ends of a series.
    """

    def network(summary: NetworkSummary | None) -> NetworkSummary | None:
        if summary is None or summary.measured is None or not summary.measured.samples_us:
            return summary
        now = summarize(summary.measured.samples_us, manifest.protocol)
        follows = now.median_us == summary.measured.median_us
        return msgspec.structs.replace(summary, measured=now) if follows else summary

    verdict, before = manifest.budget_verdict, manifest.shipped.measured
    shipped = network(manifest.shipped)
    if (
        before
        and shipped
        and shipped.measured
        and verdict == judge_latency(before.low_us, before.high_us, manifest.budget_us)
    ):
        verdict = judge_latency(shipped.measured.low_us, shipped.measured.high_us, manifest.budget_us)
    return msgspec.structs.replace(
        manifest, shipped=shipped, unpruned=network(manifest.unpruned), budget_verdict=verdict
    )


def reference_file(kept: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]) -> bytes:
    """Return the content of `reference.safetensors`: inputs and the trained network's outputs for each call.

    Args:
        kept: inputs and outputs by the end of the spans, `min` or `max`, or "" for the usual shapes.
    """
    return safetensors.numpy.save(
        {
            f"{end}{end and '.'}{kind}.{name}": np.ascontiguousarray(values)
            for end, pair in kept.items()
            for kind, tensors in zip(("inputs", "outputs"), pair, strict=True)
            for name, values in tensors.items()
        }
    )


def read_reference(bundle: Bundle, end: str = "") -> tuple[Samples, Tensors]:
    """Return the samples that a bundle keeps for the usual input shapes or those at an end.

    The trained network's outputs for them come with them.

    Raises:
        BundleError: the file is missing, changed or has other content.
    """
    kept, manifest = decode_tensors(bundle.read(REFERENCE), REFERENCE), bundle.manifest
    before, shapes = f"{end}{end and '.'}", {**manifest.inputs, **(shapes_at(manifest.spans, end) if end else {})}
    old = (
        "samples" in kept
    )  # bundle/1: joined along the first dimension, with the last call padded with its first sample
    names = ["samples"] if old else [f"{before}inputs.{name}" for name in manifest.inputs]
    if absent := {*names, *(f"{before}outputs.{name}" for name in manifest.outputs)} - kept.keys():
        raise BundleError(f"{REFERENCE} has no tensor {min(absent)!r}")
    inputs = [TensorSpec(name, manifest.dtypes.get(name, ""), shape) for name, shape in shapes.items()]
    if strange := [spec.name for spec in inputs if spec.dtype not in DTYPES.values()]:
        raise BundleError(f"{MANIFEST} gives input {strange[0]!r} no type of {', '.join(DTYPES.values())}")
    outputs = {name: kept[f"{before}outputs.{name}"] for name in manifest.outputs}
    if old:
        specs = [TensorSpec(name, "float32", shape) for name, shape in manifest.outputs.items()]
        outputs = dict(samples_of(outputs, specs).inputs)
    return samples_of(dict(zip(manifest.inputs, (kept[name] for name in names), strict=True)), inputs), outputs


def check_files(bundle: Bundle) -> dict[str, str]:
    """Return the problem of each missing, changed or extra file, by name; empty for an unchanged bundle."""
    present = set(_files(bundle.directory)) - {MANIFEST}
    problems = {name: _problem(bundle.directory, name, digest) for name, digest in bundle.manifest.files.items()}
    extra = dict.fromkeys(present - set(problems), "is not in the manifest")
    return {name: problem for name, problem in sorted({**problems, **extra}.items()) if problem}


def _problem(directory: Path, name: str, digest: str) -> str:
    if problem := _misplaced(directory, name):
        return problem
    try:
        with files.open_regular(directory / name) as file:
            return "" if hashlib.file_digest(file, "sha256").hexdigest() == digest else "was changed"
    except FileError as error:
        return error.problem
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _misplaced(directory: Path, name: str) -> str:
    """Return why a name in a manifest is not that of a file in its directory; "" if it is."""
    plain = (
        Path(name).name == name
        and not {"\0", "\\"} & set(name)
        and len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
    )
    if not plain or name in ("", "..", MANIFEST):
        return "is not the name of a file of a bundle"
    if not os.path.lexists(directory / name):
        return _MISSING
    return "is a link" if (directory / name).is_symlink() else ""


def _files(directory: Path) -> Iterator[str]:
    return (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())


def _sealed(manifest: Manifest) -> bytes:
    """Return a manifest as text that ends with its seal."""
    unsealed = msgspec.structs.replace(manifest, seal=_NO_SEAL)
    text = msgspec.json.format(msgspec.json.encode(unsealed), indent=2) + b"\n"
    return _SEAL.sub(_seal_of(text), text)


def _seal_of(text: bytes) -> bytes:
    """Return the hash of a manifest's text without its seal."""
    return sha256(_SEAL.sub(_NO_SEAL.encode(), text)).encode()


_MAX_NAME_BYTES = 255
_MISSING = "is missing"
