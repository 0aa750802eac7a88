import shutil
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import DeployError
from deploy.samples import Samples
from latency import LatencyError
from lathe import cli, evidence
from search.errors import SearchError

FOLDER = "export m.onnx --out b --samples photos --mean 0.5 0.5 0.5 --std 0.25 0.25 0.25"


@pytest.mark.parametrize("content", [b"1, 2, 3", b"", np.array(["a", "b"]), np.array([1j])])
def test_samples_are_numbers(tmp_path, content):
    path = tmp_path / "samples.npy"
    path.write_bytes(content) if isinstance(content, bytes) else np.save(path, content)
    for word in (str(path), f"x={path}"):
        with pytest.raises(LatencyError, match="is not an .npy file.*: give inputs as numpy.save.* writes them$"):
            evidence.samples([word])


def test_samples_are_of_one_input_or_of_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.arange(3))
    np.save("b=c.npy", np.array([True]))
    np.savez("all.npz", **{"x": np.arange(2), "deep/y.1": np.eye(2)})
    np.savez_compressed("packed.npz", x=np.arange(2))
    assert evidence.samples([]) is None
    assert evidence.samples(["a.npy"]).tolist() == [0, 1, 2]
    assert evidence.samples(["b=c.npy"]).tolist() == [True]
    assert {name: array.tolist() for name, array in evidence.samples(["all.npz"]).items()} == {
        "x": [0, 1],
        "deep/y.1": [[1, 0], [0, 1]],
    }
    assert evidence.samples(["packed.npz"])["x"].tolist() == [0, 1]
    assert {name: array.tolist() for name, array in evidence.samples(["x=a.npy", "y=b=c.npy"]).items()} == {
        "x": [0, 1, 2],
        "y": [True],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a.npy", "b.npy"],
            "--samples a.npy: of several inputs give NAME=a.npy, or one .npz that has an array for each name",
        ),
        (["x=a.npy", "x=a.npy"], "--samples x=a.npy: samples of input 'x' are given twice"),
        (["x="], "--samples x: of several inputs give NAME=x"),
        (["none.npz"], "none.npz does not exist"),
        (["x=none.npy"], "none.npy does not exist"),
        (["text.npz"], "text.npz is not a zip file"),
        (["object.npz"], "object.npz: x.npy is not an .npy file of numbers"),
    ],
)
def test_samples_that_do_not_go_together_are_refused(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    np.save("a.npy", np.arange(3))
    (tmp_path / "text.npz").write_text("text")
    np.savez("object.npz", x=np.array([{}]))
    with pytest.raises(LatencyError, match=f"^{message}"):
        evidence.samples(words)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Three images of 4x6 pixels in two folders, targets, and metrics."""
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    for name, grey in (("b/1.png", 255), ("a/2.png", 0), ("a/1.png", 51)):
        path = Path("photos") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), grey, np.uint8)).save(path)
    Path("photos/notes.txt").touch()
    np.save("targets.npy", np.array([[1.0], [2.0], [4.0]]))
    Path("metrics.py").write_text(
        "def error(outputs, targets):\n    return abs(outputs - targets)[:, 0]\n\nerror.higher_is_better = False\nerror.unit = 'dB'\n\n"
        "def mean(outputs, targets):\n    return outputs.mean()\n\ndef fails(outputs, targets):\n    return outputs['x']\n"
    )


def found(words, shape=(1, 3, 4, 6)):
    return evidence.given_evidence(cli.parse(words.split()), lambda: shape)


@pytest.mark.usefixtures("here")
def test_a_folder_of_images_is_preprocessed_in_the_order_of_names():
    given = found(f"{FOLDER} --labels folders")
    images = given.evidence.samples
    assert images.shape == (3, 3, 4, 6)
    np.testing.assert_allclose(images[:, 0, 0, 0], [(0.2 - 0.5) / 0.25, -2, 2], rtol=1e-6)
    assert given.evidence.labels.tolist() == [0, 0, 1]
    assert given.preprocessing == {"size": [4, 6], "mean": [0.5] * 3, "std": [0.25] * 3}
    assert given.facts == {"images": "3 of 3 images of photos"}
    assert found(FOLDER, (1, 3, 2, 8)).evidence.samples.shape == (3, 3, 2, 8)


@pytest.mark.usefixtures("here")
def test_of_many_images_some_are_taken_evenly_with_their_labels(monkeypatch):
    monkeypatch.setattr(evidence, "MOST_IMAGES", 2)
    given = found(f"{FOLDER} --labels targets.npy")
    assert given.evidence.labels.tolist() == [[1.0], [4.0]]
    assert given.facts == {"images": "2 of 3 images of photos"}


@pytest.mark.usefixtures("here")
def test_a_metric_of_ones_own_is_the_mean_of_one_number_a_sample():
    words = "export m.onnx --out b --samples targets.npy --labels targets.npy --metric metrics.py:error"
    quality = found(words).evidence.quality
    assert (quality.metric.name, quality.metric.unit, quality.metric.higher_is_better) == ("error", "dB", False)
    samples = Samples({"x": np.zeros((3, 1, 1))}, batch=1, count=3)
    figure = quality.of({"y": np.array([[[1.0]], [[2.0]], [[1.0]]])}, samples)
    assert figure.value == pytest.approx(1.0)
    assert figure.high - 1.0 == pytest.approx(1.959964 * np.std([0, 0, 3], ddof=1) / 3**0.5)
    assert quality.of({"y": np.full((3, 1, 1), np.nan)}, samples) is None
    for function, message in (
        ("mean", r"gives shape \[\], wanted one number for each of 3 samples"),
        ("fails", "fails: IndexError: "),
    ):
        quality = evidence.quality(f"metrics.py:{function}", np.zeros(3))
        with pytest.raises(DeployError, match=message):
            quality.of({"y": np.zeros((3, 1, 1))}, samples)
    with pytest.raises(DeployError, match="there are 2 targets and 3 samples"):
        evidence.quality("metrics.py:mean", np.zeros(2)).of({"y": np.zeros((3, 1, 1))}, samples)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--samples photos", "--samples photos is a folder of images: say how"),
        ("--samples targets.npy --mean 0 0 0 --std 1 1 1", "--mean and --std are of a folder"),
        ("--samples targets.npy --labels folders", "--labels folders is of a folder of images"),
        ("--labels targets.npy", "--labels targets.npy is of samples: give --samples"),
        ("--samples targets.npy --metric metrics.py:error", "--metric metrics.py:error compares outputs with targets"),
        ("--samples targets.npy --labels none.npy", "none.npy does not exist: give one label"),
        ("--samples targets.npy --labels targets.npy --metric error", "--metric 'error' is not FILE.py:FUNCTION"),
        (
            "--samples targets.npy --labels targets.npy --metric metrics.py:none",
            "metrics.py has no function 'none': it has error, mean, fails",
        ),
        ("--samples . --mean 0 0 0 --std 1 1 1", "--samples . has no images"),
    ],
)
def test_what_does_not_go_together_is_refused(words, message):
    if "photos" not in words:
        shutil.rmtree("photos")
    with pytest.raises((LatencyError, SearchError), match=f"^{message}"):
        found(f"export m.onnx --out b {words}")


@pytest.mark.usefixtures("here")
def test_images_are_for_one_input_of_three_channels():
    with pytest.raises(
        LatencyError,
        match=r"images are for one input \[batch, 3, height, width\], found \[1, 1, 4, 6\]: give SAMPLES.npy",
    ):
        found(FOLDER, (1, 1, 4, 6))
