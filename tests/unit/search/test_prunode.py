import math

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from search.prunode import BETAS, PrunodeMasks, Rule

RULE = Rule(max_channels=192, granularity=32)


def walk(rule, weights, steps=None):
    """Masks and weight after each step, at even progress."""
    masks, found = rule.start(), []
    for index, weight in enumerate(weights):
        masks, weight = rule.step(masks, weight, index / (steps or len(weights)))
        found.append((masks, weight))
    return found


def test_the_small_mask_starts_with_half_of_the_channels_and_the_large_one_with_all():
    assert RULE.start() == PrunodeMasks(s=0.5, l=1.0, small=96, large=192)


def test_a_step_of_the_paper_by_hand():
    """s = 0.5 - 0.1, l = s + 0.6 * 0.25, of 192 channels 76.8 and 105.6; the next update has 0.4 of this one."""
    rule = Rule(max_channels=192, granularity=32, paper=True)
    masks, weight = rule.step(rule.start(), -0.1, 0.5)
    assert (masks.s, masks.l, masks.update, masks.small, masks.large, weight) == (
        0.4,
        pytest.approx(0.55),
        -0.1,
        64,
        96,
        0.0,
    )
    masks = msgspec.structs.replace(masks, l=0.6)
    masks, weight = rule.step(masks, 0.1, 0.5)
    assert masks.update == pytest.approx(0.06)
    assert masks.s == pytest.approx(0.46)


def test_the_update_is_scaled_by_the_distance_between_the_masks():
    for progress in (0.0, 0.3, 0.5):
        scaled, _ = RULE.step(RULE.start(), -0.1, progress)
        assert scaled.update == pytest.approx(-0.1 * (1 - progress) ** 2)


def test_the_small_mask_stays_below_one_by_a_part_of_the_distance():
    """Prevents premature convergence; the large mask is then beyond all channels, and cut off there."""
    masks, _ = RULE.step(RULE.start(), 5.0, 0.0)
    assert masks.s == pytest.approx(1 - 0.8 * 0.6)
    assert masks.l == pytest.approx(1 + 0.2 * 0.6)
    assert masks.large == 192


def test_at_the_corner_the_paper_keeps_the_weight_and_the_default_resets_it():
    for paper, left in ((True, -0.9), (False, 0.0)):
        masks, weight = Rule(max_channels=192, granularity=32, paper=paper).step(RULE.start(), -0.9, 0.0)
        assert (masks.s, masks.small, weight) == (0.0, 32, left)
        assert masks.large == 128  # 0.6 of 192 is 115.2


def test_masks_that_are_one_width_apart_stay_and_so_does_the_weight():
    masks = RULE.start()
    for _ in range(50):
        masks, _ = RULE.step(masks, 0.0, 0.9)
    assert not RULE.moves(masks)
    assert masks.large - masks.small == 32
    assert RULE.step(masks, 0.7, 0.95) == (masks, 0.7)


@pytest.mark.parametrize("paper", [True, False])
def test_a_block_of_a_single_width_has_no_dead_candidate(paper):
    rule = Rule(max_channels=32, granularity=32, paper=paper)
    for masks, _ in [(rule.start(), 0.0), *walk(rule, [-0.5, 0.5, -0.9, 0.9])]:
        assert masks.small == masks.large == 32


@pytest.mark.parametrize("paper", [True, False])
def test_a_block_of_two_widths_has_both_for_ever(paper):
    rule = Rule(max_channels=64, granularity=32, paper=paper)
    assert not rule.moves(rule.start())
    for masks, weight in walk(rule, [-0.5, 0.5, -0.9, 0.9]):
        assert (masks.small, masks.large) == (32, 64)
        assert weight != 0  # it decides in the end, so it is not reset


@pytest.mark.parametrize("paper", [True, False])
def test_a_block_of_three_widths_can_end_with_each(paper):
    rule = Rule(max_channels=96, granularity=32, paper=paper)
    assert (rule.start().small, rule.start().large) == (64, 96)  # half of 96 is one and a half granules
    down, up = (walk(rule, [weight] * 20)[-1][0] for weight in (-0.2, 0.2))
    assert (down.small, down.large) == (32, 64)
    assert (up.small, up.large) == (64, 96)


@pytest.mark.parametrize(("granules", "small"), [(3, 2), (5, 3), (7, 4), (9, 5)])
def test_exact_halves_are_rounded_up(granules, small):
    assert Rule(max_channels=granules * 8, granularity=8).start().small == small * 8


@given(
    paper=st.booleans(),
    granules=st.integers(1, 112),
    granularity=st.sampled_from([8, 32]),
    weights=st.lists(st.floats(-3, 3), min_size=1, max_size=30),
)
def test_masks_are_widths_of_the_block_whatever_the_weights(paper, granules, granularity, weights):
    rule = Rule(max_channels=granules * granularity, granularity=granularity, paper=paper)
    for masks, _ in walk(rule, weights):
        assert masks.small % granularity == masks.large % granularity == 0
        assert granularity <= masks.small <= masks.large <= rule.max_channels
        assert (masks.small < masks.large) == (granules > 1)
        assert msgspec.json.decode(msgspec.json.encode(masks), type=PrunodeMasks) == masks


@pytest.mark.parametrize("optimum", range(8, 193, 8))
def test_the_masks_close_in_on_every_width(optimum):
    """Told in each step only which candidate is nearer to the optimum."""
    rule, masks, steps = Rule(max_channels=192, granularity=8), Rule(max_channels=192, granularity=8).start(), 400
    weight = 0.0
    for index in range(steps):
        larger = abs(masks.large - optimum) < abs(masks.small - optimum)
        masks, weight = rule.step(masks, weight + (0.1 if larger else -0.1), index / steps)
    assert abs((masks.large if weight > 0 else masks.small) - optimum) <= 8


def test_the_corner_of_the_paper_loses_small_optima():
    """The fault that the default repairs: told to shrink, then to grow, the masks stay at the bottom."""
    told = [-0.3] * 5 + [0.1] * 5
    ends = []
    for paper in (True, False):
        rule = Rule(max_channels=192, granularity=8, paper=paper)
        masks, weight = rule.start(), 0.0
        for index, change in enumerate(told):
            masks, weight = rule.step(masks, weight + change, index / 20)
        ends.append(masks.small)
    assert ends[0] == 8
    assert ends[1] > 8


def test_a_width_that_is_not_a_multiple_of_the_granularity_is_a_mistake():
    with pytest.raises(AssertionError):
        Rule(max_channels=100, granularity=32)


def test_the_constants_are_the_papers():
    assert (RULE.c, RULE.max_distance, RULE.momentum) == (0.8, 0.6, 0.4)


@pytest.mark.parametrize(("max_channels", "granularity"), [(192, 8), (3584, 32)])
def test_optima_of_the_whole_range_are_found_within_a_granule(max_channels, granularity):
    """Loss (h - o)^2 with Gumbel noise; benchmarks/prunode.py has more of them."""
    rule, draw = Rule(max_channels=max_channels, granularity=granularity), torch.Generator().manual_seed(0)
    optima = torch.tensor([granularity / max_channels, 0.05, 0.11, 0.25, 0.5, 0.77, 1.0])
    masks, weight = [rule.start()] * len(optima), torch.zeros(len(optima), requires_grad=True)
    optimizer = torch.optim.Adam([weight], lr=0.1, betas=BETAS)
    for step in range(1000):
        small, large = torch.tensor([(one.small, one.large) for one in masks]).T / max_channels
        share = torch.sigmoid(weight + torch.rand(len(optima), generator=draw).clamp(1e-6, 1 - 1e-6).logit())
        optimizer.zero_grad()
        ((small + (large - small) * share - optima) ** 2).sum().backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 1000))
        optimizer.step()
        moved = [rule.step(one, value, (step + 1) / 1000) for one, value in zip(masks, weight.tolist(), strict=True)]
        masks, weight.data = [one for one, _ in moved], torch.tensor([value for _, value in moved])
    found = torch.tensor(
        [one.large if value > 0 else one.small for one, value in zip(masks, weight.tolist(), strict=True)]
    )
    assert ((found - optima * max_channels).abs() <= 1.5 * granularity).all()
