import pytest

from search.schedule import cosine, exponential


def test_the_rate_falls_by_a_step_each_time_that_the_interval_is_over():
    steps = 10  # an epoch
    factors = [exponential(step, every=2.4 * steps, rate=0.97, warmup=0) for step in range(100)]
    assert factors[:24] == [1.0] * 24
    assert factors[24:48] == pytest.approx([0.97] * 24)
    assert factors[96] == pytest.approx(0.97**4)


def test_it_falls_between_whole_steps_too():
    assert [exponential(step, every=2.5, rate=0.5, warmup=0) for step in range(6)] == [1, 1, 1, 0.5, 0.5, 0.25]


def test_it_warms_up():
    assert [exponential(step, every=4.0, rate=0.5, warmup=2) for step in range(5)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 1, 0.5]
    )


def test_cosine_warms_up_and_ends_at_nothing():
    factors = [cosine(step, 100, warmup=10) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert max(factors) == factors[10] == 1
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0)
    assert cosine(0, 100, warmup=0) == 1
