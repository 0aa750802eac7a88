"""Validation data of an exported network: samples, their labels or targets, and a metric, from the command line."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latency import decoding
from latency.errors import LatencyError, one_line
from latency.files import raised_as

if TYPE_CHECKING:
    from deploy.evidence import Evidence
    from deploy.metric import Figure, Quality
    from deploy.samples import Samples, Tensors
    from lathe.cli import ExportCommand

MOST_IMAGES = 512
"""Maximum number of images taken from a folder: evenly spaced among all, in name order."""
FOLDERS = "folders"
"""Used instead of a file of labels: each image's label is the index of its folder, in name order."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """Validation data of a network, as given on the command line.

    Attributes:
        evidence: samples, labels and metric.
        preprocessing: preprocessing of the images of a folder; empty for other samples.
        facts: entries for the provenance.
    """

    evidence: "Evidence"
    preprocessing: Mapping[str, Any]
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Images:
    """Preprocessed images of a folder.

    `rows` are their indices among all `total` images, `folders` the indices of their folders.
    """

    values: np.ndarray
    rows: np.ndarray
    folders: np.ndarray
    total: int


def given_evidence(command: "ExportCommand", shape: Callable[[], Sequence[int]]) -> Given:
    """Return the validation data that a command gives.

    Args:
        command: the command line.
        shape: returns the shape of the network's only input; called if images have to fit it.

    Raises:
        LatencyError: a file or folder cannot be used, or flags do not go together.
        SearchError: an image cannot be read, or the metric's function does not exist.
    """
    from deploy.evidence import Evidence

    folder = Path(command.samples[0]) if len(command.samples) == 1 and Path(command.samples[0]).is_dir() else None
    _require_flags(command, folder)
    images = None if folder is None else _images(folder, command.mean or (), command.std or (), shape())
    arguments: dict[str, Any] = {"samples": samples(command.samples) if images is None else images.values}
    preprocessing, facts = {}, {}
    if images is not None:
        size = images.values.shape[2:]
        preprocessing = {"size": list(size), "mean": list(command.mean or ()), "std": list(command.std or ())}
        facts["images"] = f"{len(images.rows):,} of {images.total:,} images of {folder}"
    if command.labels is not None:
        targets = _targets(command.labels, images)
        arguments |= {"labels": targets} if command.metric is None else {"quality": quality(command.metric, targets)}
    return Given(evidence=Evidence(**arguments), preprocessing=preprocessing, facts=facts)


def _require_flags(command: "ExportCommand", folder: Path | None) -> None:
    if folder is None:
        if command.mean is not None or command.std is not None:
            raise LatencyError("--mean and --std are of a folder of images: give --samples FOLDER")
        if command.labels == FOLDERS:
            raise LatencyError(
                f"--labels {FOLDERS} is of a folder of images: give --samples FOLDER, or --labels LABELS.npy"
            )
    elif command.mean is None or command.std is None:
        raise LatencyError(
            f"--samples {folder} is a folder of images: say how the network was trained to see them, such as by "
            "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225 (of values from 0 to 1)"
        )
    if command.labels is not None and not command.samples:
        raise LatencyError(f"--labels {command.labels} is of samples: give --samples, too")
    if command.metric is not None and command.labels is None:
        raise LatencyError(
            f"--metric {command.metric} compares outputs with targets: give them by --labels TARGETS.npy"
        )


def _targets(labels: str, images: _Images | None) -> np.ndarray:
    """Return labels or targets of the samples, [samples, ...].

    If given for all images of a folder, select those of the images used.
    """
    if labels == FOLDERS:
        assert images is not None
        return images.folders
    with raised_as(LatencyError, "give one label or target a sample, as numpy.save writes them"):
        targets = decoding.read_npy(labels)
    return targets[images.rows] if images is not None and targets.ndim and len(targets) == images.total else targets


def _images(folder: Path, mean: Sequence[float], std: Sequence[float], shape: Sequence[int]) -> _Images:
    """Read images of a folder or its subfolders, in name order.

    RGB, resized bilinearly, scaled to 0 to 1, minus `mean`, over `std`.
    """
    from search.data import SUFFIXES
    from search.image_files import decode

    if len(shape) != 4 or shape[1] != 3:
        raise LatencyError(
            f"--samples {folder}: images are for one input [batch, 3, height, width], found {list(shape)}: give "
            "SAMPLES.npy"
        )
    files = sorted(file for pattern in ("*", "*/*") for file in folder.glob(pattern) if file.suffix.lower() in SUFFIXES)
    if not files:
        raise LatencyError(
            f"--samples {folder} has no images: give a folder with {', '.join(SUFFIXES)}, or with folders of them"
        )
    rows = np.unique(np.linspace(0, len(files) - 1, min(len(files), MOST_IMAGES)).round().astype(int))
    height, width = shape[2:]
    pixels = np.stack([decode(files[row], height, width) for row in rows]).astype(np.float32) / 255
    values = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    names = sorted({file.parent for file in files})
    folders = np.array([names.index(files[row].parent) for row in rows])
    return _Images(
        values=np.ascontiguousarray(values.transpose(0, 3, 1, 2)), rows=rows, folders=folders, total=len(files)
    )


def quality(name: str, targets: np.ndarray) -> "Quality":
    """Return a user-defined metric.

    Args:
        name: `FILE.py:FUNCTION`: a function of the outputs [samples, ...] (by name, if there are several) and the
            targets that returns one number per sample. The metric is their mean. Its attributes `unit` and
            `higher_is_better` are those of `deploy.metric.Metric`.
        targets: [samples, ...].
    """
    from deploy.errors import DeployError
    from deploy.metric import Metric, Quality
    from reparam.exported import RUN_ERRORS
    from search.spaces import own

    if not own.is_own(name):
        raise LatencyError(f"--metric {name!r} is not FILE.py:FUNCTION, a function of outputs and targets")
    function = own.function(name)
    unit, higher = getattr(function, "unit", ""), getattr(function, "higher_is_better", True)

    def value(outputs: "Tensors", given: "Samples") -> "Figure | None":
        if len(targets) != given.count:
            raise DeployError(
                f"--metric {name}: there are {len(targets)} targets and {given.count} samples: give one a sample"
            )
        joined = {key: given.joined(output) for key, output in outputs.items()}
        try:
            numbers = np.asarray(
                function(joined if len(joined) > 1 else next(iter(joined.values())), targets), np.float64
            )
        except RUN_ERRORS as error:
            raise DeployError(f"--metric {name} fails: {type(error).__name__}: {one_line(error)}") from error
        if numbers.shape != (given.count,):
            raise DeployError(
                f"--metric {name} gives shape {list(numbers.shape)}, wanted one number for each of {given.count} "
                "samples"
            )
        return _mean(numbers)

    return Quality(Metric(name=own.function_name(name), higher_is_better=bool(higher), unit=str(unit)), value)


def _mean(numbers: np.ndarray) -> "Figure | None":
    """Return the mean with its interval; None if a number is not finite."""
    from deploy.metric import Figure

    if not np.isfinite(numbers).all():
        return None
    return Figure.about(float(numbers.mean()), float(numbers.std(ddof=min(1, len(numbers) - 1))) / len(numbers) ** 0.5)


def samples(words: Sequence[str]) -> np.ndarray | dict[str, np.ndarray] | None:
    """Read samples given on the command line: an `.npy`, an `.npz` with an array per input, or NAME=FILE.npy for each.

    None for none.

    Raises:
        LatencyError: a file does not contain numbers, or the words conflict.
    """
    if len(words) == 1 and (Path(words[0]).exists() or "=" not in words[0]):
        with raised_as(LatencyError, "give inputs as numpy.save or numpy.savez writes them"):
            return (decoding.read_npz if words[0].endswith(".npz") else decoding.read_npy)(words[0])
    arrays: dict[str, np.ndarray] = {}
    for name, equals, file in (word.partition("=") for word in words):
        if not (name and equals and file):
            raise LatencyError(
                f"--samples {name}: of several inputs give NAME={name}, or one .npz that has an array for each name"
            )
        if name in arrays:
            raise LatencyError(f"--samples {name}={file}: samples of input {name!r} are given twice")
        with raised_as(LatencyError, "give inputs as numpy.save writes them"):
            arrays[name] = decoding.read_npy(file)
    return arrays or None
