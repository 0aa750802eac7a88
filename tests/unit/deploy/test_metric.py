import msgspec
import pytest

from deploy.metric import ACCURACY, Figure, Metric

PSNR, LOSS = Metric(name="PSNR", unit="dB"), Metric(name="loss", higher_is_better=False)


def test_a_figure_spans_95_percent_of_a_normal_distribution():
    found = Figure.about(0.5, 0.1)
    assert (found.value, found.low, found.high) == (0.5, pytest.approx(0.304, abs=1e-5), pytest.approx(0.696, abs=1e-5))


@pytest.mark.parametrize(
    ("metric", "value", "words", "axis", "on_axis"),
    [
        (ACCURACY, 0.98765, "98.77%", "accuracy, %", 98.765),
        (PSNR, 31.41592, "31.42 dB", "PSNR, dB", 31.41592),
        (LOSS, 0.123456, "0.1235", "loss", 0.123456),
    ],
    ids=lambda metric: metric.name if isinstance(metric, Metric) else "",
)
def test_values_are_shown_in_the_unit_of_the_metric(metric, value, words, axis, on_axis):
    assert (metric.words(value), metric.axis) == (words, axis)
    assert metric.on_axis(value) == pytest.approx(on_axis)


def test_a_figure_is_shown_with_its_interval():
    figure = Figure(value=30.0, low=29.5, high=30.5)
    assert PSNR.figure(figure) == "30 dB (29.5 dB to 30.5 dB)"


def test_a_gain_is_higher_for_better_values():
    assert PSNR.gain(31.0) > PSNR.gain(30.0)
    assert LOSS.gain(0.1) > LOSS.gain(0.2)


def test_a_metric_has_a_name():
    with pytest.raises(msgspec.ValidationError, match=r"length >= 1 - at `\$\.name`"):
        msgspec.json.decode('{"name": ""}', type=Metric)
