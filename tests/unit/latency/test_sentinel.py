import math

import pytest

from latency import LatencyError, Row, Safeguards
from latency.sentinel import doubtful, drift, reference


@pytest.fixture
def watch(kit):
    def made(us=100.0, status="ok", error="", block="b"):
        return kit.row(
            "sentinel", [us * 0.999, us, us * 1.001], kind="sentinel", status=status, error=error, blocks=(block,)
        )

    return made


def test_a_drift_is_beyond_the_limit_and_the_noise(kit, watch):
    assert drift(watch(105.0), watch(100.0), 0.03) == pytest.approx(0.05)
    assert drift(watch(95.0), watch(100.0), 0.03) == pytest.approx(-0.05)
    assert drift(watch(102.0), watch(100.0), 0.03) == 0.0
    noisy = kit.row("sentinel", [90.0, 105.0, 120.0], kind="sentinel")
    assert drift(noisy, watch(100.0), 0.03) == 0.0
    assert drift(Row(kind="sentinel", key="sentinel", status="run_failed"), watch(100.0), 0.03) == 0.0


def test_the_reference_is_the_first_good_one_until_a_lasting_change(watch):
    first, bad, later, moved = (
        watch(100.0),
        watch(110.0, "unstable", "drifted"),
        watch(101.0),
        watch(110.0, error="the new reference"),
    )
    assert reference([], "b") is None
    assert reference([first, bad, later], "b") is first
    assert reference([first, bad, moved, later], "b") is moved
    assert reference([first], "another") is None


def test_rows_between_good_sentinels_are_believed(kit, watch):
    a, b, c = (kit.row(key, [1.0, 2.0, 3.0]) for key in "abc")
    good, bad, moved = watch(), watch(110.0, "unstable", "drifted"), watch(110.0, error="the new reference")
    assert doubtful([a, b]) == (set(), ["a", "b"])
    assert doubtful([good, a, good, b]) == (set(), ["b"])
    assert doubtful([good, a, good, b, bad, good]) == ({"b"}, [])
    assert doubtful([good, a, bad, moved, c, good]) == ({"a"}, [])
    assert doubtful([good, a, moved]) == ({"a"}, [])
    assert doubtful([good, a, bad, b]) == ({"a", "b"}, ["b"])


def test_a_row_that_was_measured_again_is_believed_again(kit, watch):
    a, good, bad = kit.row("a", [1.0, 2.0, 3.0]), watch(), watch(110.0, "unstable", "drifted")
    assert doubtful([good, a, bad, good, a]) == (set(), ["a"])
    assert doubtful([good, a, bad, good, a, good]) == (set(), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [("sentinel_every", -1), ("patience_s", -1.0), ("retries", -1), ("drift_limit", 0.0), ("drift_limit", math.nan)],
)
def test_safeguards_that_make_no_sense(name, value):
    with pytest.raises(LatencyError, match=f"^{name} {value}"):
        Safeguards(**{name: value})
