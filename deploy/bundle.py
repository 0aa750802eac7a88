"""The directory that ships: its manifest, how it is written whole, and how a change in it is found."""

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
from deploy.shapes import Span, at
from deploy.validate import BudgetVerdict, Step, judge_latency
from latency import Device, Latency, Measurement, Protocol, Runtime, files
from latency.decoding import MAX_JSON_BYTES, convert, decode_json, decode_tensors
from latency.errors import FileError
from latency.measure import summarize
from latency.units import Unit, interval, unit_for
from latency.values import Count, SampleUs, Sha256

MANIFEST = "manifest.json"
# bundle/1: one input, `input_shape`, batch first and float32; `outputs` by name, the batch their first dimension.
# bundle/2: `inputs` and `dtypes` by name, shapes as they are; `not_finite` and `rounding` of a comparison; the reference holds whole
# inputs and outputs, call by call; percentiles and `reason` of a measurement, `origin` of a prediction.
# bundle/3: `metric`, of which networks and steps have a `score`; of bundle/2 they had an `accuracy`.
SCHEMA = "bundle/3"
ONNX, ENGINE, REFERENCE = "model.onnx", "model.engine", "reference.safetensors"
HALF = {"fp16": "model.fp16.onnx", "bf16": "model.bf16.onnx"}
"""Names of the network in a narrow precision."""
TIMING_CACHE, SCRIPT, README = "model.timing_cache", "run.py", "README.md"
_SEAL = re.compile(rb'"seal": "([0-9a-f]{64})"\n}\n\Z')

RANDOM = "drawn at random, as none were given"
"""What is said of samples that prove less than real ones."""

Target = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One form of the network in the chain from its architecture to its engine."""

    name: str
    sha256: Sha256
    """of the file, or of the tensors where the form is not in the bundle"""
    made_from: str
    """name of the form before; "" for the first"""
    file: str = ""
    """where it is in the bundle; "" where only its hash is kept"""


class Builds(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Several builds of one engine, of which one ships."""

    count: Count
    different: Count
    """number of engines that are not the same bytes"""
    medians_us: tuple[SampleUs, ...] = ()
    """median latency of each of these, timed in turns; the least ships"""
    reason: str = ""
    """why they were not timed, in which case the first one ships"""

    def __str__(self) -> str:
        if self.different == 1:
            return f"{self.count} builds are the same engine"
        different = f"{self.count} builds are {self.different} different engines"
        if not self.medians_us:
            return f"{different}; the first one ships, as they were not timed: {self.reason}"
        low, high, unit = min(self.medians_us), max(self.medians_us), unit_for(self.medians_us)
        return f"{different}, from {unit.number(low)} to {unit.words(high)} ({high / low - 1:.1%} apart); the fastest ships"


class Layer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is left of a layer's output channels."""

    name: str
    kept: Count
    of: Count


class Network(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size, quality and speed of one network, as deployed."""

    params: Count
    macs: Count
    """multiply-accumulates of convolutions and linear layers for one sample"""
    score: Figure | None
    """the metric on the bundle's samples with the precision that ships; None where there is none"""
    predicted: Latency | None
    """by a latency table, for one batch"""
    measured: Measurement | None
    """on `Manifest.device`, for one batch; the two networks in turns, in one run"""
    not_measured: str = ""
    """why `measured` is None"""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that is known about a bundle; manifest.json."""

    schema: Literal["bundle/3"] = SCHEMA
    created: str
    """ISO 8601, UTC"""
    target: Target
    precision: Precision
    """of the shipped network's arithmetic; inputs and outputs have the types of `dtypes`"""
    io: Precision = "fp32"
    """of the floating-point inputs and outputs"""
    int8_nodes: Count = 0
    """number of nodes whose operands are dequantised: INT8 by the file that was exported, with `precision` around them"""
    inputs: dict[str, tuple[Count, ...]]
    """shape of each input by its name, in order"""
    outputs: dict[str, tuple[Count, ...]]
    """shape of each output by its name, in order"""
    dtypes: dict[str, str]
    """of every input and output, as numpy calls it"""
    spans: dict[str, Span] = {}
    """of the inputs that may have several shapes, of which `inputs` has the usual one"""
    output_spans: dict[str, Span] = {}
    """of the outputs whose shapes follow from those"""
    samples: Count
    """how many the validation ran on"""
    samples_from: Literal["given", "random"]
    metric: Metric | None
    """what the scores are; None where nothing is known of how good the outputs are"""
    classes: tuple[str, ...]
    """names of the outputs"""
    preprocessing: dict[str, Any]
    """from an image file to the input, as the trainer recorded it"""
    shipped: Network
    unpruned: Network | None
    budget_us: SampleUs | None
    """latency that one batch may take"""
    budget_verdict: BudgetVerdict
    layers: tuple[Layer, ...]
    validation: tuple[Step, ...]
    device: Device | None
    """where the latencies were measured; None where nothing could be"""
    runtime: Runtime
    protocol: Protocol
    build: dict[str, Any]
    """options of the engine's build"""
    builds: Builds | None = None
    """where the engine was built several times"""
    compute_capabilities: tuple[str, ...]
    """of the GPUs that the engine is for; empty for every GPU that its runtime takes"""
    certificate: Certificate | None = None
    """why the network may run in half precision; None where it ships in FP32"""
    explanation: Explanation | None = None
    """where half precision breaks the network; None where it was not asked for"""
    inspection: Inspection | None = None
    """the layers of the engine of a network in a narrow precision, as its inspector tells them"""
    lowering: str
    versions: dict[str, str]
    """of the packages that made the bundle"""
    provenance: dict[str, str]
    """hashes and facts of what the network was made from, as the caller knows them"""
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
        """Name of the file of the network in its narrow precision; "" where there is none."""
        name = HALF.get(self.precision, "")
        return name if name in self.files else ""

    @property
    def arithmetic(self) -> str:
        """What the shipped network computes in, for people."""
        nodes = f"{self.int8_nodes} node{'s' * (self.int8_nodes != 1)}"
        return f"{self.precision}, and INT8 in {nodes}" if self.int8_nodes else self.precision

    @property
    def failures(self) -> list[str]:
        """Each verdict that does not hold, in words. What was not run, and a latency that is unsure, are no failures."""
        return self.failures_in(unit_for([self.budget_us or 0.0]))

    def failures_in(self, unit: Unit) -> list[str]:
        """The same, with latencies in a unit."""
        lines = [f"{step.name} {step.precision}: {step.reason}" for step in self.validation if step.verdict == "failed"]
        if self.budget_verdict == "missed" and self.shipped.measured and self.budget_us:
            lines.append(f"latency: {interval(self.shipped.measured, unit)}, the budget is {unit.words(self.budget_us)}")
        return lines


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk."""

    directory: Path
    manifest: Manifest

    def read(self, file: str) -> bytes:
        """A file of the bundle that is as the manifest says.

        Raises:
            BundleError: it is missing, changed or not a regular file, or the manifest does not list it.
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
            raise BundleError(f"{self.directory}: {file} {problem}: {self._mend(file)}")
        return data

    def misfit(self, device: Device, runtime: Runtime) -> str:
        """Why the engine may not be loaded on a GPU and a TensorRT, with the command that rebuilds it; "" where it may."""
        manifest, here = self.manifest, device.compute_capability
        if runtime.version != manifest.runtime.version and not manifest.build.get("version_compatible"):
            return f"{ENGINE} is of {runtime.name} {manifest.runtime.version}, here is {runtime.version}: {self._mend(ENGINE)}"
        if manifest.compute_capabilities and here not in manifest.compute_capabilities:
            capabilities = ", ".join(manifest.compute_capabilities)
            return f"{ENGINE} is for compute capability {capabilities}, this {device.name} has {here}: {self._mend(ENGINE)}"
        return ""

    def _mend(self, file: str) -> str:
        source = self.directory / ONNX if file == ENGINE else "SOURCE"
        return f"build it again with `lathe export {source} --target {self.manifest.target} --out NEW`"


def sha256(data: bytes) -> str:
    """Hash of bytes, as all artefacts name each other."""
    return hashlib.sha256(data).hexdigest()


def refuse_occupied(out: Path) -> None:
    """Make sure that a bundle may be written to `out`: it is absent, empty, or an older bundle as it was written and nothing else.

    Raises:
        BundleError: something else is there.
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
        there = load(out)
    except BundleError as error:
        raise BundleError(f"a bundle is in the way, and not as it was written: {error}; give another --out, or remove it") from error
    for name, problem in check_files(there).items():
        if name not in there.manifest.files:
            raise BundleError(f"{out} holds a bundle and also {name}, which would be lost; give another --out, or move it away")
        if problem != _MISSING:
            raise BundleError(f"{out} holds a bundle whose {name} {problem}, which would be lost; give another --out, or remove it")


def write(out: Path, manifest: Manifest, content: Mapping[str, bytes]) -> Bundle:
    """Write a bundle so that it appears whole: beside its place first, then renamed. An older bundle there is replaced.

    Args:
        out: the directory.
        manifest: `files` and `seal` are filled in.
        content: of every other file, by name.

    Raises:
        BundleError: something else is in the way, or the disk refuses.
    """
    _sweep(out)
    refuse_occupied(out)
    manifest = msgspec.structs.replace(manifest, files={name: sha256(data) for name, data in sorted(content.items())})
    sealed = _seal(manifest)
    with whole_directory(out) as fresh:
        for name, data in {**content, MANIFEST: sealed}.items():
            with (fresh / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
    return load(out)


@contextlib.contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """A new directory to write into, which then takes the place of `out`, or leaves all as it was.

    Raises:
        BundleError: the disk refuses.
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


def _sweep(out: Path) -> None:
    """Take away what writers that were killed left beside a bundle, and bring back the bundle that one of them had moved out of the way."""
    if not out.parent.is_dir():
        return
    for path in list(out.parent.iterdir()):
        left = re.fullmatch(rf"\.{re.escape(out.name)}\.(\d+)\.(new|old)", path.name)
        if left and not _runs(int(left[1])):
            if left[2] == "old" and not out.exists():
                path.rename(out)
            else:
                shutil.rmtree(path, ignore_errors=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return pid != os.getpid()


def load(directory: str | Path) -> Bundle:
    """Read a bundle's manifest; `Bundle.read` then checks each file that is asked for.

    Raises:
        BundleError: the directory is not a bundle, or its manifest cannot be read or was changed.
    """
    directory = Path(directory)
    if not os.path.lexists(directory / MANIFEST):
        if any((directory / name).exists() for name in (ONNX, ENGINE, REFERENCE)):
            raise ChangedManifest(directory, "is missing")
        raise BundleError(f"{directory} is not a bundle: it has no {MANIFEST}; make one with `lathe export`")
    if (directory / MANIFEST).is_symlink():
        raise BundleError(f"{directory / MANIFEST} is a link: a bundle holds regular files only; copy it with what the link leads to")
    with files.raised_as(BundleError, "give the directory that `lathe export` wrote"):
        data = files.read_bytes(directory / MANIFEST, limit=MAX_JSON_BYTES)
    if not (seal := _SEAL.search(data)) or sha256(_blank(data)) != seal[1].decode():
        raise ChangedManifest(directory, "was changed")
    with files.raised_as(BundleError, "export again, or read it by the version of Lathe that wrote it"):
        found = decode_json(data, dict, directory / MANIFEST)
        first = found.get("schema") == "bundle/1"
        if first:
            found = _from_1(directory, found)
        if found.get("schema") == "bundle/2":
            found = _from_2(found)
        manifest = convert(found, Manifest, directory / MANIFEST)
        return Bundle(directory, _judged_again(manifest) if first else manifest)


class ChangedManifest(BundleError):
    """A manifest is not as it was written."""

    def __init__(self, directory: Path, how: str) -> None:
        super().__init__(f"{directory}: {MANIFEST} {how} after it was written: export again with `lathe export SOURCE --out {directory}`")
        self.how = how


def _from_1(directory: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The fields of bundle/2 from those of bundle/1, whose ONNX alone knows what its input is called."""
    try:
        parsed = graph.parse(files.read_bytes(directory / ONNX)).graph
    except (FileError, LoweringError):
        parsed = onnx.GraphProto()  # `check_files` says that the file is missing or was changed
    name = parsed.input[0].name if parsed.input else "input"
    outputs = found["outputs"] if isinstance(found.get("outputs"), dict) else {}
    inputs = {name: found.pop("input_shape", None)}
    return {**found, "schema": "bundle/2", "inputs": inputs, "dtypes": dict.fromkeys((name, *outputs), "float32")}


def _from_2(found: dict[str, Any]) -> dict[str, Any]:
    """The fields of bundle/3 from those of bundle/2, whose metric was the accuracy."""

    def scored(fields: Any) -> Any:
        if not isinstance(fields, dict) or "accuracy" not in fields:
            return fields
        kept = {name: value for name, value in fields.items() if name != "accuracy"}
        share = fields["accuracy"]
        figure = {"value" if name == "share" else name: value for name, value in share.items()} if isinstance(share, dict) else share
        return {**kept, "score": figure}

    networks = {name: scored(found[name]) for name in ("shipped", "unpruned") if name in found}
    steps = found.get("validation")
    validation = {"validation": [scored(step) for step in steps]} if isinstance(steps, list) else {}
    known = any(isinstance(network, dict) and network.get("score") for network in networks.values())
    return {**found, **networks, **validation, "schema": SCHEMA, "metric": msgspec.to_builtins(ACCURACY) if known else None}


def _judged_again(manifest: Manifest) -> Manifest:
    """A manifest of bundle/1 with what is said of its samples today, where what it says follows from them; else as it is.

    The version that wrote it did not look for two modes, nor at the ends of a series.
    """

    def network(found: Network | None) -> Network | None:
        if found is None or found.measured is None or not found.measured.samples_us:
            return found
        now = summarize(found.measured.samples_us, manifest.protocol)
        follows = now.median_us == found.measured.median_us
        return msgspec.structs.replace(found, measured=now) if follows else found

    verdict, before = manifest.budget_verdict, manifest.shipped.measured
    shipped = network(manifest.shipped)
    if before and shipped and shipped.measured and verdict == judge_latency(before.low_us, before.high_us, manifest.budget_us):
        verdict = judge_latency(shipped.measured.low_us, shipped.measured.high_us, manifest.budget_us)
    return msgspec.structs.replace(manifest, shipped=shipped, unpruned=network(manifest.unpruned), budget_verdict=verdict)


def reference(kept: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]) -> bytes:
    """What `reference.safetensors` holds: whole inputs and the trained network's outputs of them, call by call.

    Args:
        kept: by the end of the spans where they are, `min` or `max`; "" for the usual shapes.
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
    """The samples that a bundle keeps for the usual shapes of its inputs or those at an end, and the trained network's outputs of them.

    Raises:
        BundleError: the file is missing or changed, or holds something else.
    """
    kept, manifest = decode_tensors(bundle.read(REFERENCE), REFERENCE), bundle.manifest
    before, shapes = f"{end}{end and '.'}", {**manifest.inputs, **(at(manifest.spans, end) if end else {})}
    old = "samples" in kept  # of bundle/1: joined along the first dimension, the last call filled up with its first sample
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
    """What is wrong with each file that is missing, changed or extra, by name; empty for a bundle as it was written."""
    found = set(_files(bundle.directory)) - {MANIFEST}
    problems = {name: _problem(bundle.directory, name, digest) for name, digest in bundle.manifest.files.items()}
    extra = dict.fromkeys(found - set(problems), "is not in the manifest")
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
    """Why a name that a manifest gives is not that of a file in its directory; "" where it may be."""
    plain = Path(name).name == name and not {"\0", "\\"} & set(name) and len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
    if not plain or name in ("", "..", MANIFEST):
        return "is not the name of a file of a bundle"
    if not os.path.lexists(directory / name):
        return _MISSING
    return "is a link" if (directory / name).is_symlink() else ""


def _files(directory: Path) -> Iterator[str]:
    return (str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())


def _seal(manifest: Manifest) -> bytes:
    draft = msgspec.json.encode(msgspec.structs.replace(manifest, seal="0" * 64))
    blank = msgspec.json.format(draft, indent=2) + b"\n"
    return blank[: -len(_ZERO_END)] + _ZERO_END.replace(b"0" * 64, sha256(blank).encode())


def _blank(data: bytes) -> bytes:
    return data[: -len(_ZERO_END)] + _ZERO_END


_MAX_NAME_BYTES = 255
_MISSING = "is missing"
_ZERO_END = b'"seal": "' + b"0" * 64 + b'"\n}\n'
