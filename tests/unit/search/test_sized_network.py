import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from search import SearchError
from search.relax import gumbel
from search.sized_network import DepthPart, Sampling, SizedNetwork, WidthPart, aggregation, interpolation

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def sized(space, *, depths: bool = True, **sampling) -> SizedNetwork:
    """All groups and stages of a space, with weights of seed 0."""
    torch.manual_seed(0)
    network = space.module()
    producers = {"0.conv": ("0.conv", "1.body.second.conv", "2.body.second.conv", "3.body.second.conv")}
    widths = [WidthPart(name, full, producers.get(name, (name,)), (4, 8, 12, 16)) for name, full in space.groups]
    stages = [DepthPart("stage1", ("1", "2", "3"), (1, 2, 3))] if depths else []
    return SizedNetwork(network, widths, stages, X, Sampling(**sampling))


@pytest.mark.parametrize(("channels", "out"), [(3, 10), (5, 16), (8, 16), (7, 7), (10, 4), (1, 6)])
def test_interpolation_is_the_loop_of_the_footnote_and_adaptive_average_pooling(channels, out):
    x = torch.randn(2, channels, 3, 5, dtype=torch.float64)
    looped = torch.stack(
        [x[:, math.floor(i * channels / out) : math.ceil((i + 1) * channels / out)].mean(1) for i in range(out)], 1
    )
    made = torch.einsum("oc,nchw->nohw", interpolation(channels, out).double(), x)
    torch.testing.assert_close(made, looped)
    torch.testing.assert_close(made, F.adaptive_avg_pool3d(x, (out, 3, 5)))


def test_aggregation_is_equation_4_and_zero_beyond_the_largest_size():
    x, weights = torch.randn(2, 16, 3, 3), torch.tensor([0.3, 0.7])
    made = F.conv2d(x, aggregation(16, [5, 12], weights)[:, :, None, None])
    wanted = 0.3 * F.adaptive_avg_pool3d(x[:, :5], (12, 3, 3)) + 0.7 * x[:, :12]
    torch.testing.assert_close(made[:, :12], wanted)
    assert not made[:, 12:].any()
    padded = F.conv2d(x, aggregation(16, [5, 12], weights, interpolate=False)[:, :, None, None])
    torch.testing.assert_close(padded[:, :12], 0.3 * F.pad(x[:, :5], (0, 0, 0, 0, 0, 7)) + 0.7 * x[:, :12])


def test_at_its_most_probable_sizes_it_is_the_network_of_that_choice(staged):
    network = sized(staged)
    with torch.no_grad():
        for (part, sizes), best in zip(network.width_sizes(), (12, 8, 4, 16), strict=True):
            sizes.logits[part.options.index(best)] = 1.0
        network.depths[0].logits[1] = 1.0
    network.eval()
    made = network(X)
    choice = staged.choice([sizes.best for _, sizes in network.width_sizes()], {"stage1": 2})
    learned = network.released().state_dict()
    found = staged.module(choice).eval()
    found.load_state_dict({name: learned.get(name, value) for name, value in found.state_dict().items()})
    torch.testing.assert_close(made, found(X))


def test_what_is_released_is_the_network_as_it_was_given(staged):
    torch.manual_seed(0)
    names = list(staged.module().state_dict())
    network = sized(staged)
    weights = {id(weight) for weight in network.network.parameters()}
    released = network.released()
    assert list(released.state_dict()) == names
    assert {id(weight) for weight in released.parameters()} == weights


def test_a_layer_reads_the_same_from_zeros_as_if_its_inputs_were_sliced(staged):
    """The two ways to handle inputs of varying width, the authors' code's and the paper's, are one function."""
    network = sized(staged, depths=False, count=1).train()
    network.noise = lambda shape: torch.zeros(shape)
    with torch.no_grad():
        for sizes in network.widths:
            sizes.logits[1] = 9.0  # 8 channels everywhere
    made = network(X)
    stem, *blocks, head = network.released().train()

    def conv(x, layer):
        weight, norm = layer.conv.weight[:8, : x.shape[1]], layer.norm
        return F.batch_norm(
            F.conv2d(x, weight, padding=1), None, None, norm.weight[:8], norm.bias[:8], True, eps=norm.eps
        )

    x = F.relu(conv(X, stem))
    for block in blocks:
        x = F.relu(x + conv(F.relu(conv(x, block.body.first)), block.body.second))
    linear = head[-1]
    torch.testing.assert_close(made, F.linear(x.mean((2, 3)), linear.weight[:, :8], linear.bias), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("interpolate", [True, False])
def test_a_norm_for_each_width_begins_as_a_slice_of_one_and_then_learns_for_itself(staged, interpolate):
    outputs = []
    for each_norm in (False, True):
        network = sized(staged, interpolate=interpolate, each_norm=each_norm).train()
        network.noise = lambda shape: torch.arange(float(shape[0])).flip(0) / 3  # the two narrowest
        outputs.append(network(X))
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=1e-4)
    F.cross_entropy(outputs[1], torch.tensor([0, 1, 0, 1])).backward()
    norms = network.network.get_submodule("0.norm").norms
    assert [norm.weight.grad is not None for norm in norms] == [True, True, False, False]


def test_what_is_released_has_the_norm_of_the_most_probable_width(staged):
    network = sized(staged, each_norm=True)
    norms = network.network.get_submodule("0.norm").norms
    with torch.no_grad():
        network.widths[0].logits[1] = 1.0
        for norm, value in zip(norms, (1.0, 2.0, 3.0, 4.0), strict=True):
            norm.weight.fill_(value)
            norm.running_mean.fill_(value)
    names = list(staged.module().state_dict())
    made, released = network.eval()(X), network.released()
    assert list(released.state_dict()) == names
    norm = released.get_submodule("0.norm")
    assert norm.weight.tolist() == [2.0] * 8 + [1.0] * 8
    assert norm.running_mean.tolist() == [2.0] * 8 + [0.0] * 8
    hidden = staged.widths(staged.largest())[1:]
    found = staged.module(staged.choice([8, *hidden])).eval()
    learned = released.state_dict()
    found.load_state_dict({name: learned.get(name, value) for name, value in found.state_dict().items()})
    torch.testing.assert_close(made, found(X))


def test_a_stage_mixes_the_outputs_of_all_depths(staged):
    network = sized(staged, count=1)
    noise = torch.tensor([0.5, -1.0, 2.0])
    network.noise = lambda shape: noise if tuple(shape) == (3,) else torch.zeros(shape)
    network.temperature = lambda _: 2.0
    seen = []
    for name in "123":
        network.network.get_submodule(name).block.register_forward_hook(
            lambda module, inputs, output: seen.append(output)
        )
    mixed = []
    network.network.get_submodule("3").register_forward_hook(lambda module, inputs, output: mixed.append(output))
    network.train()(X)
    q = ((network.depths[0].logits.log_softmax(0) + noise) / 2.0).softmax(0)
    torch.testing.assert_close(mixed[0], sum(weight * output for weight, output in zip(q, seen, strict=True)))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_reach_widths_and_depths_but_not_the_widths_of_a_single_sample(staged, count):
    network = sized(staged, count=count).train()
    F.cross_entropy(network(X), torch.tensor([0, 1, 0, 1])).backward()
    assert all(sizes.logits.grad.any() == (count > 1) for sizes in network.widths)
    assert network.depths[0].logits.grad.any()


def test_layers_that_are_added_up_draw_one_width(staged):
    network = sized(staged, count=1, depths=False).train()
    widths = []
    for name in ("0", "1", "2", "3"):
        network.network.get_submodule(name).register_forward_hook(
            lambda module, inputs, output: widths.append(int(output.flatten(2).any(2).any(0).sum()))
        )
    for _ in range(3):
        network(X)
        assert len(set(widths)) == 1
        widths.clear()


def test_a_mixture_has_all_sizes_with_their_probabilities_and_no_noise(staged):
    network = sized(staged, sample=False).train()
    network.noise = lambda shape: pytest.fail("no noise is drawn")
    made = []
    network.network.get_submodule("0.norm").register_forward_hook(lambda module, inputs, output: made.append(output))
    network(X)
    shares = network.widths[0].shares()
    normed = network.network.get_submodule("0.norm.layer")
    wanted = aggregation(16, (4, 8, 12, 16), shares)
    x = network.network.get_submodule("0.conv")(X)
    torch.testing.assert_close(made[0], torch.einsum("oc,nchw->nohw", wanted, normed(x)))


def test_the_temperature_follows_the_passes_in_training_mode(staged):
    network, asked = sized(staged), []
    network.temperature = lambda taken: asked.append(taken) or 1.0
    for mode in (True, False, True):
        network.train(mode)(X)
    assert asked == [0, 1]


def test_any_layer_can_be_sampled_with_a_norm_or_without():
    class Bare(nn.Sequential):
        """A convolution without norm, one whose norm is read by what follows, and a linear layer."""

    torch.manual_seed(0)
    layers = Bare(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(216, 4),
        nn.Linear(4, 2),
    )
    parts = [WidthPart("0", 8, ("0",), (2, 8)), WidthPart("2", 6, ("2",), (3, 6)), WidthPart("5", 4, ("5",), (1, 4))]
    network = SizedNetwork(layers, parts, [], X, Sampling()).train()
    assert network(X).shape == (4, 2)
    assert [name for name, module in network.network.named_children() if type(module).__name__ == "SampledLayer"] == [
        "0",
        "3",
        "5",
    ]
    with pytest.raises(SearchError, match=r"^layer 0 makes 8 channels, and 7 are to be drawn from: --exclude it$"):
        SizedNetwork(nn.Sequential(nn.Conv2d(3, 8, 3)), [WidthPart("0", 7, ("0",), (2, 7))], [], X, Sampling())


def test_noise_is_of_torchs_global_state(staged):
    network = sized(staged).train()
    assert network.noise is gumbel
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(network(X))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_depths_whose_blocks_draw_widths_of_their_own_are_interpolated_to_the_widest(free):
    """Eq. 5: each output to as many channels as the widest of them has."""
    torch.manual_seed(0)
    named = {"1.shortcut.conv": ("1.body.second.conv", (4, 16)), "2.shortcut.conv": ("2.body.second.conv", (8, 16))}
    widths = [WidthPart(name, 16, (layer,), options) for name, (layer, options) in named.items()]
    stage = DepthPart("stage1", ("1", "2", "3"), (1, 2), ("1.shortcut.conv", "2.shortcut.conv", ""))
    network = SizedNetwork(free.module(), widths, [stage], X, Sampling(count=1)).train()
    with torch.no_grad():
        for sizes in network.widths:
            sizes.logits[0] = 1e3  # 4 and 8 channels
    network(X)
    last = network.network.get_submodule("3")
    assert last.mixed[0] == (1, 2)
    assert last.aligned.keys() == {1}
    torch.testing.assert_close(last.aligned[1][:8, :4], interpolation(4, 8))
    assert last.aligned[1].sum() == 8
