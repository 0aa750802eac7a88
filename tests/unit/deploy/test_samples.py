import numpy as np
import pytest
from onnx import TensorProto, helper

from deploy.errors import DeployError, LoweringError
from deploy.samples import TensorSpec, calls_of, inputs_of, outputs_of, random_samples, samples_of

IMAGE = TensorSpec("image", "float32", (2, 3))
IDS = TensorSpec("ids", "int64", (4,))
SCALE = TensorSpec("scale", "float16", ())


def array(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def test_joined_samples_are_split_into_calls_and_the_last_is_filled_up():
    found = samples_of(array(5, 3), [IMAGE])
    assert (found.calls, found.batch, found.count) == (3, 2, 5)
    np.testing.assert_array_equal(found.inputs["image"][:2].reshape(4, 3), array(5, 3)[:4])
    np.testing.assert_array_equal(found.inputs["image"][2], np.tile(array(5, 3)[4], (2, 1)))
    assert (found.first(3).calls, found.first(3).count) == (1, 2)
    assert (found.first(1).calls, found.first(99).count) == (1, 5)


def test_whole_inputs_are_taken_as_they_are_and_agree_in_number():
    given = {"image": array(3, 2, 3), "ids": array(3, 4, dtype=np.int32), "scale": array(3)}
    found = samples_of(given, [IMAGE, IDS, SCALE])
    assert (found.calls, found.batch, found.count) == (3, 2, 6)
    assert {name: (values.shape, values.dtype.name) for name, values in found.inputs.items()} == {
        "image": ((3, 2, 3), "float32"),
        "ids": ((3, 4), "int64"),
        "scale": ((3,), "float16"),
    }
    calls = list(calls_of(found.inputs))
    assert [call["scale"].shape for call in calls] == [()] * 3
    np.testing.assert_array_equal(calls[2]["ids"], found.call(2)["ids"])
    assert samples_of(tuple(given.values()), [IMAGE, IDS, SCALE]).calls == 3
    assert samples_of(found, [IMAGE]) is found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (array(4, 3), "the network has 3 inputs, image, ids, scale: give samples of each by its name"),
        ({"image": array(4, 3)}, "samples are of image, the network's inputs are image, ids, scale"),
        (
            {"image": array(3, 2, 3), "ids": array(2, 4), "scale": array(3)},
            "samples: as many of every input are needed, at least 1; found 3 of image, 2 of ids, 3 of scale",
        ),
        (
            {"image": array(3, 2, 4), "ids": array(3, 4), "scale": array(3)},
            r"samples of image have shape \[3, 2, 4\], the network takes \[samples, 3\] or \[calls, 2, 3\]",
        ),
        (
            {"image": array(3, 2, 3), "ids": array(3, 4), "scale": array(3, 1)},
            r"samples of scale have shape \[3, 1\], the network takes \[calls\]",
        ),
        (
            {"image": array(3, 2, 3), "ids": array(3, 4) + 0.5, "scale": array(3)},
            r"samples of ids, float32 from 0\.5 to 11\.5, are not int64: convert them",
        ),
        (
            {"image": array(3, 2, 3), "ids": array(3, 4) * np.nan, "scale": array(3)},
            "samples of ids contain values that are infinite or not a number",
        ),
        (
            {"image": array(3, 2, 3), "ids": array(3, 4), "scale": array(3) * 1e5},
            "samples of scale contain values that are infinite .* as float16",
        ),
        (
            {"image": np.array(["a"]), "ids": array(3, 4), "scale": array(3)},
            r"samples of image are <U1, the network takes float32 \[2, 3\]",
        ),
        (
            {"image": [[1], [1, 2]], "ids": array(3, 4), "scale": array(3)},
            "samples of image are not numbers in one array",
        ),
    ],
)
def test_what_does_not_fit_names_the_input(given, message):
    with pytest.raises(DeployError, match=message) as caught:
        samples_of(given, [IMAGE, IDS, SCALE])
    assert "\n" not in str(caught.value)


def test_random_samples_are_normal_valid_and_the_same_each_time():
    specs = [IMAGE, IDS, TensorSpec("mask", "bool", (50,)), TensorSpec("pixels", "uint8", (50,))]
    one, other = random_samples(specs), random_samples(specs)
    assert (one.calls, one.count, one.batch) == (4, 8, 2)
    assert all(np.array_equal(one.inputs[spec.name], other.inputs[spec.name]) for spec in specs)
    assert {spec.name: one.inputs[spec.name].dtype.name for spec in specs} == {spec.name: spec.dtype for spec in specs}
    assert set(np.unique(one.inputs["ids"])) <= {0, 1}
    assert one.inputs["pixels"].max() > 200
    assert 0.5 < one.inputs["image"].std() < 1.5
    given = random_samples(specs, {"ids": np.array([7, 8, 9, 9])})
    assert (given.inputs["ids"] == [7, 8, 9, 9]).all(), "what is not floating may be an index: a valid one is kept"
    assert random_samples([SCALE]).inputs["scale"].shape == (8,)


def test_inputs_and_outputs_of_a_graph_are_tensors_of_known_types():
    def model(kind):
        values = [helper.make_tensor_value_info(name, kind, [1, 2]) for name in "xy"]
        return helper.make_model(
            helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
        )

    assert inputs_of(model(TensorProto.BOOL)) == (TensorSpec("x", "bool", (1, 2)),)
    assert [str(spec) for spec in outputs_of(model(TensorProto.DOUBLE))] == ["float64 [1, 2]"]
    for kind, word in ((TensorProto.STRING, "string"), (TensorProto.BFLOAT16, "bfloat16")):
        with pytest.raises(LoweringError, match=f"input 'x' is {word}: tensors of float32, .* can be shipped"):
            inputs_of(model(kind))
