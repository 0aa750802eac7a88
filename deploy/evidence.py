"""What a network is judged by: samples, labels or another measure of quality, and the unpruned network beside it."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from deploy.errors import DeployError
from deploy.graph import Precision
from deploy.metric import Quality
from deploy.samples import Samples, Tensors, TensorSpec, random_samples, resized, samples_of
from deploy.shapes import ENDS, Span, shapes_at
from deploy.validate import Labels, accuracy
from reparam.structure import map_tensors

CERTIFIED_SAMPLES = 128
"""Maximum number of samples for activation ranges."""
PROOF_SAMPLES = 32
"""Maximum number of samples on which rewrites are proved in float64 and FP16 is explained."""
REFERENCE_SAMPLES = 8
"""Number of samples kept in the bundle for `verify` with the trained network's outputs; at least one call."""
_SLACK = 0.01
_PIXELS = 16.0
"""Upper bound on the values of common normalisations."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a network is judged by.

    Attributes:
        samples: real, preprocessed inputs: samples joined along the first dimension, or whole inputs, [calls, *shape];
            by name if there are several. By default, seeded random samples, with the example's values for inputs that
            are not floating-point.
        labels: class index of each sample.
        quality: measure of the outputs' quality for networks that do not classify; instead of labels.
        baseline: the unpruned network, timed in turns with the shipped one.
    """

    samples: object = None
    labels: object = None
    quality: Quality | None = None
    baseline: nn.Module | None = None


NO_EVIDENCE = Evidence()
"""Random samples, and no measure of quality."""


@dataclass(frozen=True)
class Data:
    """Samples of the network's inputs, as its shipped form takes them.

    Attributes:
        samples: the samples.
        labels: class index of each sample, if it is known.
        quality: measure of the outputs' quality on the samples.
        drawn: whether the samples were drawn at random.
    """

    samples: Samples
    labels: Labels | None
    quality: Quality | None
    drawn: bool


def data_of(
    evidence: Evidence, inputs: Sequence[TensorSpec], examples: Mapping[str, np.ndarray] | None, io: Precision
) -> Data:
    """Return the samples and labels of an evidence for a network.

    Args:
        evidence: the evidence.
        inputs: inputs of the network.
        examples: valid inputs by name, if they are known.
        io: precision of the inputs of the shipped form.

    Raises:
        DeployError: samples or labels do not fit the inputs.
    """
    if not inputs:
        raise DeployError("the network has no inputs: what it gives is a constant")
    if evidence.samples is None:
        if evidence.labels is not None:
            raise DeployError("labels need the samples that they are of: give both")
        return Data(rounded_to(random_samples(inputs, examples), io), None, evidence.quality, drawn=True)
    samples = samples_of(map_tensors(evidence.samples, lambda tensor: tensor.detach().cpu().numpy()), inputs)
    labels = None if evidence.labels is None else _labels(evidence.labels, samples.count)
    return Data(rounded_to(samples, io), labels, evidence.quality if labels is None else accuracy(labels), drawn=False)


def _labels(given: object, count: int) -> Labels:
    labels = np.asarray(given)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise DeployError(
            f"labels must be one class index a sample, {count} in all; found shape {list(labels.shape)} of "
            f"{labels.dtype}"
        )
    return labels


def require_classes(
    labels: Labels | None, classes: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Require labels and class names that fit the network's outputs.

    Raises:
        DeployError: they do not.
    """
    if labels is None and not classes:
        return
    if len(outputs) != 1 or len(outputs[0].shape) != 2 or outputs[0].shape[:1] != inputs[0].shape[:1]:
        shapes = ", ".join(str(list(value.shape)) for value in outputs)
        raise DeployError(
            f"labels and names of classes need one output of shape [batch, classes], found {shapes}: leave them out"
        )
    width = outputs[0].shape[1]
    if labels is not None and not 0 <= labels.min() <= labels.max() < width:
        raise DeployError(
            f"labels go from {labels.min()} to {labels.max()}, the network's {width} classes from 0 to {width - 1}"
        )
    if classes and len(classes) != width:
        raise DeployError(f"{len(classes)} names of classes for {width} outputs: give {width}")


def rounded_to(samples: Samples, io: Precision) -> Samples:
    """Return samples with the values that inputs of a precision hold."""
    return samples.rounded(np.float16) if io == "fp16" else samples


def at_ends(samples: Samples, inputs: Sequence[TensorSpec], spans: Mapping[str, Span]) -> Iterator[tuple[str, Samples]]:
    """Yield samples for the smallest and the largest shapes of dynamic inputs, with the name of each end."""
    for end in ENDS if spans else ():
        shapes = shapes_at(spans, end)
        yield (
            end,
            resized(samples, [dataclasses.replace(spec, shape=shapes.get(spec.name, spec.shape)) for spec in inputs]),
        )


def kept_reference(samples: Samples, outputs: Mapping[str, Mapping[str, np.ndarray]]) -> tuple[Tensors, Tensors]:
    """Return inputs with the outputs of the first form that ran, which ran on more samples."""
    return samples.inputs, {name: output[: samples.calls] for name, output in next(iter(outputs.values())).items()}


def sample_warnings(samples: Samples, preprocessing: Mapping[str, Any]) -> dict[str, str]:
    """Return a warning about an implausible range of the samples, which the network may never have seen in training."""
    seen = next((values for values in samples.inputs.values() if values.dtype.kind == "f"), None)
    if seen is None:
        return {}
    low, high = float(seen.min()), float(seen.max())
    span = f"samples are from {low:.4g} to {high:.4g}"
    mean, std = (np.asarray(preprocessing.get(name, ()), np.float64) for name in ("mean", "std"))
    if mean.size and mean.shape == std.shape and (std > 0).all():
        first, last = float((-mean / std).min()), float(((1 - mean) / std).max())
        if low < first - _SLACK or high > last + _SLACK:
            return {"samples": f"{span}, and the preprocessing gives {first:.4g} to {last:.4g}: are they preprocessed?"}
    elif low >= 0 and high > _PIXELS and (seen == np.round(seen)).all():
        return {"samples": f"{span}, all whole numbers, like the pixels of an image file: were they preprocessed?"}
    return {}
