import numpy as np
import pytest
import torch

from deploy import DeployError, Evidence
from deploy.evidence import at_ends, data_of, kept_reference, require_classes, sample_warnings
from deploy.samples import TensorSpec
from deploy.shapes import Span
from deploy.validate import ACCURACY
from unit.deploy.helpers import SHAPE, samples

INPUTS = (TensorSpec("input", "float32", SHAPE),)
LOGITS = (TensorSpec("output", "float32", (1, 4)),)


def data(io="fp32", **given):
    return data_of(Evidence(**given), INPUTS, None, io)


def test_without_samples_they_are_drawn_alike_each_time():
    one, other = data(), data()
    assert one.drawn
    assert (one.labels, one.quality) == (None, None)
    np.testing.assert_array_equal(one.samples.inputs["input"], other.samples.inputs["input"])


def test_labels_make_accuracy_the_measure_and_another_measure_stays():
    labelled = data(samples=samples(2), labels=torch.tensor([0, 3]))
    assert (labelled.drawn, labelled.labels.tolist(), labelled.quality.metric) == (False, [0, 3], ACCURACY)
    assert data(samples=samples(2), quality=labelled.quality).quality is labelled.quality


def test_samples_hold_what_half_precision_inputs_can():
    value = torch.full((1, *SHAPE[1:]), 1 / 3)
    assert data(samples=value).samples.inputs["input"].flat[0] == np.float32(1 / 3)
    assert data("fp16", samples=value).samples.inputs["input"].flat[0] == np.float16(1 / 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"samples": torch.zeros(4, 3, 9, 8)},
            r"samples of input have shape \[4, 3, 9, 8\], the network takes \[samples, 3, 8, 8\]",
        ),
        ({"samples": torch.zeros(0, 3, 8, 8)}, r"samples of input have shape \[0, 3, 8, 8\]"),
        ({"samples": samples(2) * np.inf}, "samples of input contain values that are infinite"),
        ({"samples": samples(2), "labels": torch.zeros(3, dtype=torch.long)}, "one class index a sample, 2 in all"),
        ({"samples": samples(2), "labels": torch.zeros(2)}, "one class index a sample.*float32"),
        ({"labels": torch.zeros(2, dtype=torch.long)}, "labels need the samples"),
        ({"samples": np.array(3.0)}, r"samples of input have shape \[\], the network takes \[samples, 3, 8, 8\]"),
        ({"samples": np.array(["a", "b"])}, "samples of input are <U1, the network takes float32"),
    ],
)
def test_evidence_that_does_not_fit_the_inputs_is_one_line(given, message):
    with pytest.raises(DeployError, match=message) as caught:
        data(**given)
    assert "\n" not in str(caught.value)


def test_a_network_without_inputs_has_no_evidence():
    with pytest.raises(DeployError, match="the network has no inputs"):
        data_of(Evidence(), (), None, "fp32")


@pytest.mark.parametrize(
    ("labels", "classes", "outputs", "message"),
    [
        ([0, 4], (), LOGITS, "labels go from 0 to 4, the network's 4 classes from 0 to 3"),
        ([-1, 3], (), LOGITS, "labels go from -1 to 3"),
        (None, ("cat", "dog"), LOGITS, "2 names of classes for 4 outputs: give 4"),
        (
            [0, 1],
            (),
            (TensorSpec("output", "float32", (1, 2, 8, 8)),),
            r"need one output of shape \[batch, classes\], found \[1, 2, 8, 8\]: leave them out",
        ),
        ([0, 1], (), LOGITS * 2, r"need one output of shape \[batch, classes\], found \[1, 4\], \[1, 4\]"),
    ],
)
def test_labels_and_classes_fit_the_outputs(labels, classes, outputs, message):
    with pytest.raises(DeployError, match=message):
        require_classes(labels if labels is None else np.array(labels), classes, INPUTS, outputs)
    require_classes(np.array([0, 3]), ("a", "b", "c", "d"), INPUTS, LOGITS)


@pytest.mark.parametrize(
    ("values", "preprocessing", "words"),
    [
        (
            torch.full((2, 3, 8, 8), 255.0),
            {},
            "samples are from 255 to 255, all whole numbers, like the pixels of an image file",
        ),
        (
            samples() * 9,
            {"mean": [0.5], "std": [0.25]},
            "and the preprocessing gives -2 to 2: are they preprocessed?",
        ),
        (samples(), {}, None),
        (samples().clamp(-2, 2), {"mean": [0.5], "std": [0.25]}, None),
    ],
)
def test_samples_of_an_odd_range_are_doubted_in_words(values, preprocessing, words):
    doubted = sample_warnings(data(samples=values).samples, preprocessing)
    assert (words in doubted["samples"]) if words else not doubted


def test_dynamic_inputs_have_samples_at_both_ends_of_their_spans():
    drawn = data().samples
    spans = {"input": Span((1, 3, 8, 8), (2, 3, 8, 8), (5, 3, 8, 8))}
    shapes = {end: there.call(0)["input"].shape for end, there in at_ends(drawn, INPUTS, spans)}
    assert sorted(shapes.values()) == [(1, 3, 8, 8), (5, 3, 8, 8)]
    assert list(at_ends(drawn, INPUTS, {})) == []


def test_the_reference_is_of_the_first_form_that_ran_on_the_samples_kept():
    kept = data(samples=samples(4)).samples.first(2)
    outputs = {"trained": {"output": np.arange(4.0)}, "onnx": {"output": -np.arange(4.0)}}
    inputs, expected = kept_reference(kept, outputs)
    assert inputs["input"].shape[0] == 2
    assert expected["output"].tolist() == [0.0, 1.0]
