import itertools

import numpy as np
import pytest

from latency import BlockSpec
from latency.transfer import Transfer, describe

SPECS = [
    BlockSpec.of(op, attrs={"h": 16, "w": 16, "kernel": kernel, "act": "relu"}, widths={"c_in": a, "c_out": b})
    for op in ("conv", "sep")
    for kernel in (1, 3)
    for a in range(8, 65, 8)
    for b in range(8, 65, 8)
]


def device(seed):
    """Latency of every block: each op has a speed of its own, and each byte and each launch a price."""
    draw = np.random.RandomState(seed)
    speed, launch, price = (
        {"conv": draw.uniform(1, 4), "sep": draw.uniform(0.5, 4)},
        draw.uniform(1, 8),
        draw.uniform(0.2, 2),
    )
    work = np.array(
        [
            spec.width("c_in") * spec.width("c_out") * int(spec.attr("kernel")) ** 2 / 1000 / speed[spec.op]
            for spec in SPECS
        ]
    )
    moved = np.array([spec.width("c_in") + spec.width("c_out") for spec in SPECS]) / 16 * price
    return (launch + np.maximum(work, moved) + 0.2 * moved) * np.exp(draw.normal(0, 0.01, len(SPECS)))


def transferred(old, new, count):
    transfer = Transfer(old, describe(SPECS))
    anchors = list(itertools.islice(transfer.order([spec.family for spec in SPECS]), count))
    return anchors, transfer.fit(anchors, new[anchors])


def test_a_power_of_the_old_latency_is_found_by_ten_anchors():
    old = device(0)
    _, found = transferred(old[:, None], 3.0 * old**0.8, 10)
    assert np.abs(found.us / (3.0 * old**0.8) - 1).mean() < 0.01


def test_blocks_unlike_the_old_device_are_known_by_their_features():
    old = device(1)
    new = old * np.where([spec.op == "sep" for spec in SPECS], 3.0, 1.0)
    _, found = transferred(old[:, None], new, 40)
    assert np.abs(found.us / new - 1).mean() < 0.05


def test_several_old_devices_tell_more_than_one():
    olds, errors = np.stack([device(seed) for seed in range(10, 18)], axis=1), []
    for count in (1, 8):
        errors.append(
            np.mean(
                [
                    np.abs(transferred(olds[:, :count], (new := device(seed)), 20)[1].us / new - 1).mean()
                    for seed in range(4)
                ]
            )
        )
    assert errors[1] < errors[0]


def test_intervals_cover_about_95_percent_of_what_was_not_measured_on_drawn_devices():
    inside, widths = [], []
    for seed in range(12):
        new = device(100 + seed)
        anchors, found = transferred(device(seed)[:, None], new, 30)
        rest = np.setdiff1d(np.arange(len(new)), anchors)
        inside.append(((found.low_us <= new) & (new <= found.high_us))[rest].mean())
        widths.append((found.high_us / found.us - 1)[rest].mean())
    assert 0.9 < np.mean(inside) <= 0.995
    assert np.mean(widths) < 0.4


def test_the_order_begins_with_the_ends_and_one_of_each_family_and_is_always_the_same():
    old = device(3)
    orders = [
        list(Transfer(old[:, None], describe(SPECS)).order([spec.family for spec in SPECS], keep=(5, 6)))
        for _ in range(2)
    ]
    assert orders[0] == orders[1]
    assert orders[0][:2] == [old.argmin(), old.argmax()]
    assert {SPECS[i].family for i in orders[0][:6]} == {spec.family for spec in SPECS}
    assert sorted(orders[0]) == sorted(set(range(len(SPECS))) - {5, 6})


def test_features_are_sizes_as_logarithms_and_names():
    found = describe(SPECS[:1] + SPECS[-1:])
    assert found.shape[0] == 2
    assert np.isfinite(found).all()
    assert np.log(8 * 16 * 16) == pytest.approx(found[0].max())
    with_one_more = describe(
        [*SPECS[:1], BlockSpec.of("pool", attrs={"h": 1, "w": 1, "kind": "max"}, widths={"c_in": 3})]
    )
    assert with_one_more.shape[1] > found.shape[1]
