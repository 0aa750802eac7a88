import copy
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deploy.adapter import adapt, call_of, require_deterministic
from deploy.errors import DeployError
from deploy.samples import TensorSpec

X = torch.zeros(2, 4)


class Function(nn.Module):
    """A linear layer and a function of it and the inputs."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(4, 3), function

    def forward(self, x, *more, scale=1.0, **named):
        return self.function(self.layer, x, *more, *named.values()) * scale


class Batch(nn.Module):
    def forward(self, batch):
        return batch["image"]


class Keywords(nn.Module):
    def forward(self, x, *, mask=None):
        return x if mask is None else x.masked_fill(mask, 0.0)


@pytest.mark.parametrize(
    ("module", "example", "names"),
    [
        (nn.Identity(), X, ("input",)),
        (Function(None), (X, X), ("x", "more.0")),
        (Keywords(), {"x": X, "mask": X > 0}, ("x", "mask")),
        (Keywords(), (X,), ("x",)),
        (Batch(), {"image": X, "rest": [X, None]}, ("batch.image", "batch.rest.0")),
        (Batch(), ({"image": X},), ("batch.image",)),
        (Function(None), {"x": X, "scale": 2.0, "x_": {"x": X}}, ("x", "x_.x")),
    ],
)
def test_inputs_have_the_names_of_what_they_are_given_as(module, example, names):
    call = call_of(module, example)
    assert call.names == names
    args, kwargs = call.filled(torch.full_like(tensor, i + 5) for i, tensor in enumerate(call.tensors))
    assert call_of(module, example).tensors[0] is not (list(args) + list(kwargs.values()))[0]


@pytest.mark.parametrize(
    ("module", "example", "message"),
    [
        (
            nn.Bilinear(4, 4, 1),
            {"input1": X},
            r"example_input of 1 parts does not fit Bilinear\.forward\(input1: .*, input2: .*\)",
        ),
        (Keywords(), "x", "example_input of Keywords has no tensor in it"),
        (nn.Identity(), X.bfloat16(), "input 'input' is bfloat16, dense tensors of .*: give a float32 one"),
        (nn.Identity(), X[:0], r"input 'input' of shape \[0, 4\] is empty: every size must be above 0"),
        (nn.Identity(), X.to_sparse(), r"input 'input' is sparse"),
        (nn.Linear(5, 1), X, "Linear cannot be run on example_input: mat1 and mat2"),
        (Function(lambda layer, x: layer(x).to(torch.complex64)), X, "output 'output' is complex64"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(module, example, message):
    with pytest.raises(DeployError, match=message) as caught:
        adapt(module, example)
    assert "\n" not in str(caught.value)


@dataclass
class Heads:
    logits: torch.Tensor
    maps: list


class Gives(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return self.make(x)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda x: x * 2, ["output"]),
        (lambda x: (x * 2, None), ["output"]),
        (lambda x: [x * 2, (x, x > 0)], ["output0", "output1.0", "output1.1"]),
        (lambda x: {"y": x * 2, "none": None}, ["y"]),
        (lambda x: {"input": x * 2, "aux": [x]}, ["input_", "aux.0"]),
        (lambda x: Heads(x, [x, x.sum()]), ["logits", "maps.0", "maps.1"]),
    ],
)
def test_outputs_have_the_names_of_their_places(make, names):
    assert [value.name for value in adapt(Gives(make), X).outputs] == names


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda x: {"y": x, "size": 3}, "output 'size' is of type int"), (lambda x: None, "the network gives no tensor")],
)
def test_outputs_that_are_no_tensors_are_refused(make, message):
    with pytest.raises(DeployError, match=message):
        adapt(Gives(make), X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.float32])
def test_ends_keep_their_types_and_arithmetic_is_in_float32(dtype):
    layer = nn.Linear(4, 3).to(dtype)
    adapter = adapt(layer, X.to(dtype))
    name = str(dtype).removeprefix("torch.")
    assert adapter.inputs == (TensorSpec("input", name, (2, 4)),)
    assert adapter.outputs == (TensorSpec("output", name, (2, 3)),)
    assert adapter.network.weight.dtype == torch.float32
    assert layer.weight.dtype == dtype
    found = adapter.run({"input": np.ones((3, 2, 4), name)})["output"]
    assert (found.shape, found.dtype.name) == ((3, 2, 3), name)
    exact = adapter.of(copy.deepcopy(layer).double(), torch.float64).run({"input": np.ones((3, 2, 4), name)})["output"]
    assert exact.dtype == np.float64
    np.testing.assert_allclose(found, exact, rtol=1e-2)


def test_a_type_in_the_code_of_a_network_does_not_stop_it():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x.half()).float()

    adapter = adapt(Half().half(), X.half())
    assert (adapter.exact, adapter.outputs[0].dtype) == (True, "float32")
    assert adapter.run({"input": np.zeros((1, 2, 4), np.float16)})["output"].shape == (1, 2, 3)


class Drops(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), Function(lambda layer, x: F.dropout(layer(x), 0.5, True)))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("module", "operator"),
    [
        (Drops(), "aten.bernoulli in module 'inner.1'"),
        (Function(lambda layer, x: torch.bernoulli(layer(x).sigmoid())), "aten.bernoulli"),
        (Function(lambda layer, x: layer(x) + torch.randn(3)), "aten.randn"),
        (Function(lambda layer, x: torch.multinomial(layer(x).softmax(1), 2).float()), "aten.multinomial"),
    ],
)
def test_what_draws_random_numbers_is_refused_by_its_operator(module, operator):
    with pytest.raises(
        DeployError, match=f"the network draws random numbers: {operator} gives something else in every run"
    ):
        require_deterministic(adapt(module, torch.ones(20, 4)))


def test_numbers_that_are_drawn_for_nothing_are_no_hindrance():
    require_deterministic(adapt(Function(lambda layer, x: (torch.randn(3), layer(x))[1]), X))
    require_deterministic(adapt(nn.Sequential(nn.Linear(4, 4), nn.Dropout()), X))


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize("module", [Counter(), Function(lambda _, x: x + np.random.default_rng().random())])
def test_what_changes_from_run_to_run_is_refused(module):
    with pytest.raises(
        DeployError, match=rf"^{type(module).__name__} gives something else in every run, so nothing can be verified: "
    ):
        require_deterministic(adapt(module, X))


def test_a_network_that_overwrites_its_input_leaves_the_example_alone():
    example = X.clone()
    adapter = adapt(Function(lambda _, x: x.relu_().mul_(2)), example)
    require_deterministic(adapter)
    assert torch.equal(example, X)
    assert np.array_equal(adapter.examples["input"], X.numpy())


def test_samples_that_a_network_fails_on_are_refused_in_its_words():
    adapter = adapt(nn.Embedding(10, 4), torch.tensor([[1, 9]]))
    with pytest.raises(DeployError, match=r"^Embedding fails on the samples: index out of range in self$"):
        adapter.run({"input": np.array([[[1, 10]]])})


def test_weights_without_numbers_are_refused():
    with pytest.raises(
        DeployError,
        match=r"^'weight' of Linear is on the device meta, where tensors have no numbers: load the weights first$",
    ):
        adapt(nn.Linear(4, 4, device="meta"), X)
