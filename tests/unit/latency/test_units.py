from latency import Latency, Measurement
from latency.units import interval, microseconds


def test_milliseconds_begin_at_one():
    assert (microseconds(999.94), microseconds(1000.0)) == ("999.9 µs", "1.000 ms")


def test_predictions_and_measurements_read_alike():
    predicted = Latency(us=110.0, low_us=103.1, high_us=1169.0, source="predicted")
    measured = Measurement(samples_us=(110.0,), median_us=110.0, low_us=103.1, high_us=1169.0, status="ok")
    assert interval(predicted) == interval(measured) == "110.0 µs (103.1 µs to 1.169 ms)"


def test_what_should_be_known_of_a_latency_stands_behind_it():
    replayed = Latency(us=110.0, low_us=103.1, high_us=120.0, source="predicted", origin="replayed from a recording")
    assert interval(replayed) == "110.0 µs (103.1 µs to 120.0 µs), replayed from a recording"
    shaky = Measurement(
        samples_us=(110.0,), median_us=110.0, low_us=103.1, high_us=120.0, p90_us=130.0, p99_us=1500.0, status="unstable", reason="why"
    )
    assert interval(shaky) == "110.0 µs (103.1 µs to 120.0 µs), p90 130.0 µs, p99 1.500 ms, unstable: why"
