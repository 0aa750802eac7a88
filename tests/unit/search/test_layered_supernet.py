import dataclasses

import pytest
import torch
from torch import nn

from search import ops
from search.blocks import SqueezeExcite
from search.cost import LatencyModel, MacsModel
from search.layered_supernet import LayeredSupernet, MixedLayer, Prunode, Shares
from search.prunode import PrunodeMasks
from search.space import Choice
from search.spaces.layered import SKIP, MultiBlock, StochasticLayer
from search.train import by_batch_statistics

from .conftest import make_layers, make_table

SPACE = make_layers()
PAIR = torch.tensor([0.3, 0.7])


def multi_block(*, fused=False, se=False, stride=1, kernel=3):
    spec = ops.inverted_residual((4, 8, 8), 4, hidden=32, kernel=kernel, stride=stride, se=se, fused=fused, act="swish")
    return MultiBlock(name="block", spec=spec, hidden=(8, 16, 24, 32))


def prunode(*, small=8, large=24, literal=False, **kind):
    torch.manual_seed(0)
    node = Prunode(multi_block(**kind), literal=literal)
    node.masks = PrunodeMasks(s=0.3, l=0.7, small=small, large=large)
    return node


def twice(node, x, pair):
    """The block run for each candidate, whose hidden channels are masked; what comes before the last norm."""
    body, made = node.block.body, []
    for width in (node.masks.small, node.masks.large):
        mask = (torch.arange(32) < width).float().view(1, -1, 1, 1)
        hidden = x
        for name, part in body.named_children():
            if name in ("expand", "depthwise") or isinstance(part, SqueezeExcite):
                hidden = part(hidden) * mask
        made.append(body.project.conv(hidden))
    return made, pair[0] * made[0] + pair[1] * made[1]


KINDS = [
    {"fused": fused, "se": se, "stride": stride} for fused in (False, True) for se in (False, True) for stride in (1, 2)
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_prunode_is_the_weighted_mean_of_its_block_run_twice(kind):
    """Before the last norm; the same outputs, and the same gradients of the input, of every weight and of the shares."""
    node, seen = prunode(**kind), []
    node.block.body.project.norm.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x, pair = torch.randn(6, 4, 8, 8, requires_grad=True), PAIR.clone().requires_grad_()
    node(x, pair)
    (found,) = seen
    _, wanted = twice(node, x, pair)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    inputs = [
        x,
        pair,
        *(value for name, value in node.block.named_parameters() if not name.startswith("body.project.norm")),
    ]
    noise = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad((value * noise).sum(), inputs, retain_graph=True) for value in (found, wanted)),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_the_literal_form_normalises_each_candidate_by_itself(kind):
    node = prunode(literal=True, **kind)
    x = torch.randn(6, 4, 8, 8)
    made, _ = twice(node, x, PAIR)
    norm = node.block.body.project.norm
    wanted = PAIR[0] * norm(made[0]) + PAIR[1] * norm(made[1]) + (x if kind["stride"] == 1 else 0)
    torch.testing.assert_close(node(x, PAIR), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("literal", [False, True])
def test_a_share_of_one_is_the_candidate_itself(literal):
    """In evaluation, with statistics of its own: what a block of that width computes."""
    node = prunode(se=True, literal=literal)
    node(torch.randn(16, 4, 8, 8), PAIR)
    node.eval()
    x = torch.randn(2, 4, 8, 8)
    narrow = Prunode(dataclasses.replace(multi_block(se=True), spec=node.specs()[0], hidden=(8,)))
    narrow.block.load_state_dict(
        {
            name: value[tuple(slice(size) for size in narrow.block.state_dict()[name].shape)]
            for name, value in node.block.state_dict().items()
        }
    )
    torch.testing.assert_close(node(x, torch.tensor([1.0, 0.0])), narrow.block.eval()(x))


def test_norms_of_masked_channels_keep_their_statistics():
    node = prunode(large=16)
    norm = node.block.body.depthwise.norm
    node(torch.randn(8, 4, 8, 8), PAIR)
    assert (norm.running_mean[:16] != 0).all()
    assert (norm.running_mean[16:] == 0).all()
    before = norm.running_mean.clone()
    node.eval()
    with by_batch_statistics(node):
        node(torch.randn(8, 4, 8, 8), PAIR)
    assert torch.equal(norm.running_mean, before)


def test_the_shares_of_a_pair_are_a_two_way_gumbel_softmax_of_zero_and_the_weight():
    node = prunode()
    with torch.no_grad():
        node.weight.fill_(0.4)
    noise = torch.tensor([0.1, -0.2])
    wanted = torch.softmax(torch.tensor([0.1, 0.2]) / 0.5, 0)
    torch.testing.assert_close(node.pair(noise, 0.5).detach(), wanted)
    assert node.width == 24
    single = Prunode(MultiBlock(name="single", spec=multi_block().spec, hidden=(32,)))
    assert single.pair(noise, 1.0).tolist() == [0.0, 1.0]
    x = torch.randn(4, 4, 8, 8)
    torch.testing.assert_close(single(x, single.pair(noise, 1.0)), single.block(x))


def test_a_step_of_algorithm_1_moves_the_masks_and_resets_the_weight():
    node = Prunode(multi_block())
    with torch.no_grad():
        node.weight.fill_(-0.2)
    node.step(0.0)
    assert (node.masks.s, node.masks.small, node.masks.large) == (pytest.approx(0.3), 8, 32)
    assert node.weight.item() == 0
    assert node.width == 8


# Layers


def layer(*, skippable=True, options=3, **settings):
    blocks = tuple(
        MultiBlock(name=name, spec=ops.conv((4, 8, 8), 4, kernel=kernel))
        for name, kernel in [("k1", 1), ("k3", 3), ("k5", 5)][:options]
    )
    return MixedLayer(
        StochasticLayer(name="a", options=blocks, skippable=skippable),
        **({"phi": 1.1, "lam": 0.5} | settings),
    )


def think(mixed, **logits):
    with torch.no_grad():
        for name, value in logits.items():
            mixed.theta[[*mixed.specs, SKIP].index(name)] = value


def test_the_output_of_a_layer_is_the_weighted_sum_of_its_blocks():
    mixed = layer().eval()
    x, shares = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.3, 0.5])
    wanted = sum(share * block(x) for share, block in zip(shares, mixed.blocks.values(), strict=True))
    torch.testing.assert_close(mixed(x, Shares(blocks=shares, pairs=(None,) * 3)), wanted)


def test_architecture_weights_start_equal_at_one_over_their_number():
    mixed = layer(skippable=False)
    assert mixed.theta.tolist() == pytest.approx([1 / 3] * 4)  # the last one of a block that skips
    assert list(mixed.probabilities().values()) == pytest.approx([1 / 3] * 3)


def test_blocks_below_the_threshold_are_removed_and_the_best_never():
    mixed = layer(skippable=False)
    think(mixed, k1=-3.0, k3=1.0, k5=1.2)
    (removed,) = mixed.prune(0.15)
    assert isinstance(removed, nn.Module)
    assert mixed.candidates == ("k3", "k5")
    assert len(mixed.prune(0.999)) == 1
    assert mixed.candidates == ("k5",)
    assert mixed.prune(0.999) == []
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(mixed(x, mixed.sample(1.0, noisy=True)), mixed.blocks["k5"](x))


def test_the_penultimate_block_is_replaced_by_one_that_skips_and_both_start_again_as_equals():
    mixed = layer().eval()
    think(mixed, k1=-5.0, k3=-6.0, k5=4.0)
    assert len(mixed.prune(0.2)) == 2  # the less probable one first, then the penultimate
    assert mixed.candidates == ("k5", SKIP)
    assert mixed.probabilities() == {"k5": 0.5, SKIP: 0.5}
    assert mixed.best == "k5"
    x = torch.randn(2, 4, 8, 8)
    shares = Shares(blocks=torch.tensor([0.4, 0.6]), pairs=(None, None))
    torch.testing.assert_close(mixed(x, shares), 0.4 * 0.5 * mixed.blocks["k5"](x) + 0.6 * 1.1 * x)


@pytest.mark.parametrize("winner", ["k5", SKIP])
def test_when_one_of_the_last_two_is_gone_there_is_no_factor(winner):
    mixed = layer().eval()
    think(mixed, k5=4.0)
    mixed.prune(0.3)
    think(mixed, **{winner: 3.0})
    mixed.prune(0.4)
    assert mixed.candidates == (winner,)
    assert len(mixed.blocks) == (winner != SKIP)
    x = torch.randn(2, 4, 8, 8)
    wanted = x if winner == SKIP else mixed.blocks["k5"](x)
    torch.testing.assert_close(mixed(x, mixed.sample(1.0, noisy=True)), wanted)


def test_a_layer_of_one_block_that_can_be_skipped_has_the_choice_from_the_start():
    assert layer(options=1).candidates == ("k1", SKIP)
    assert layer(options=1, skippable=False).candidates == ("k1",)


def test_the_share_of_a_single_candidate_is_a_constant():
    shares = layer(options=1, skippable=False).sample(1.0, noisy=True)
    assert shares.blocks.tolist() == [1.0]
    assert not shares.blocks.requires_grad  # else processes would disagree on which parameters a step uses


def test_a_layer_goes_on_from_its_state():
    mixed = LayeredSupernet(SPACE, tau=1.0, phi=1.0, lam=1.0).layers["c"]
    mixed.prunode("irb_k3_se").masks = PrunodeMasks(s=0.1, l=0.2, small=8, large=16)
    mixed.prune(0.9)
    again = LayeredSupernet(SPACE, tau=1.0, phi=1.0, lam=1.0).layers["c"]
    again.restore(mixed.state())
    assert again.state() == mixed.state()
    again.load_state_dict(mixed.state_dict())


# The whole network


@pytest.fixture(scope="module")
def table():
    return make_table(SPACE, [SPACE.largest(), SPACE.smallest()] * 4)


def supernet(**settings):
    torch.manual_seed(0)
    return LayeredSupernet(SPACE, **({"tau": 1.0, "phi": 1.1, "lam": 0.5} | settings))


def test_a_supernet_computes_logits_and_trains_every_weight():
    network = supernet()
    logits = network(torch.randn(4, 3, 8, 8))
    assert logits.shape == (4, 2)
    logits.square().sum().backward()
    assert all(weight.grad is not None for weight in (*network.weights(), *network.thetas()[:1], *network.widths()))
    count = len(network.weights()) + len(network.widths()) + len(list(network.each()))
    assert count == len(list(network.parameters()))


def test_activations_that_are_computed_again_change_nothing():
    x, found = torch.randn(4, 3, 8, 8), []
    for recompute in (False, True):
        network = supernet(recompute=recompute)
        torch.manual_seed(1)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda value, saved=saved: saved.append(value.numel()) or value, lambda value: value
        ):
            logits = network(x)
        logits.square().sum().backward()
        gradients = [weight.grad for weight in (*network.weights(), *network.thetas(), *network.widths())]
        found.append((sum(saved), logits, [gradient for gradient in gradients if gradient is not None]))
    (most, logits, gradients), (least, again, others) = found
    assert least < most / 4
    torch.testing.assert_close(again, logits)
    torch.testing.assert_close(others, gradients)


def test_shares_are_drawn_anew_in_training_and_without_noise_in_evaluation():
    network, x = supernet(), torch.randn(4, 3, 8, 8)
    drawn = []
    for _ in range(2):
        network(x)
        drawn.append(network.shares[2].blocks.tolist())
    assert drawn[0] != drawn[1]
    network.eval()(x)
    assert network.shares[2].blocks.tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("priced", [True, False])
def test_the_expected_cost_of_one_hot_shares_is_that_of_the_network(table, priced):
    model = LatencyModel(SPACE, table) if priced else MacsModel(SPACE)
    network = supernet()
    shares = []
    for name, mixed in network.each():
        blocks = torch.zeros(len(mixed.candidates))
        blocks[-1] = 1.0
        pairs = tuple(torch.tensor([1.0, 0.0]) if mixed.prunode(option) else None for option in mixed.candidates)
        shares.append(Shares(blocks=blocks, pairs=pairs))
        assert SKIP not in mixed.candidates, name
    largest = SPACE.largest()
    halves = Choice(options=largest.options, widths={name: width // 2 for name, width in largest.widths.items()})
    assert float(network.expected(model, shares)) == pytest.approx(model.price(halves).cost, rel=1e-6)


def test_the_expected_cost_is_the_mean_weighted_with_the_shares_of_blocks_and_candidates(table):
    """By hand, of one layer: blocks 0.2, 0.3, 0.1, 0.4, and in each the small candidate 0.25."""
    model, mixed = LatencyModel(SPACE, table), supernet().layers["b"]
    blocks = torch.tensor([0.2, 0.3, 0.1, 0.4], requires_grad=True)
    pair = torch.tensor([0.25, 0.75])
    term = mixed.term(model, Shares(blocks=blocks, pairs=(pair,) * 4))
    wanted = 0.0
    for share, name in zip(blocks.tolist(), mixed.candidates, strict=True):
        small, large = mixed.prunode(name).specs()
        wanted += share * (0.25 * table.share(small, first=False).us + 0.75 * table.share(large, first=False).us)
    assert term.item() == pytest.approx(wanted, rel=1e-6)
    term.backward()
    small, large = mixed.prunode("irb_k5_se").specs()
    small_us, large_us = (table.share(block, first=False).us for block in (small, large))
    assert blocks.grad[3].item() == pytest.approx(0.25 * small_us + 0.75 * large_us, rel=1e-5)


def test_a_skipped_layer_costs_nothing():
    model, mixed = MacsModel(SPACE), layer(options=1)
    term = mixed.term(model, Shares(blocks=torch.tensor([0.0, 1.0]), pairs=(None, None)))
    assert float(term) == 0.0
    assert float(model.expected([term])) == 0.0
