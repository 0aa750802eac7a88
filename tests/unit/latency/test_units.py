import re
import tokenize
from pathlib import Path

import latency
from latency import Latency, Measurement
from latency.units import (
    interval,
    kilo,
    microseconds,
    milliseconds,
    ms_from_us,
    ns_from_us,
    s_from_ms,
    unit_for,
    us_from_ms,
    us_from_ns,
)


def test_factors():
    assert (us_from_ms(1.5), ms_from_us(1500.0), us_from_ns(2500), ns_from_us(2.5), s_from_ms(1500.0), kilo(64)) == (
        1500,
        1.5,
        2.5,
        2500,
        1.5,
        0.064,
    )
    assert milliseconds(423.456) == "0.4235 ms"


def test_factors_of_1000_stand_in_units_alone():
    """Of code: limits and counts, such as 1000 samples, are no factors."""
    root, factor = Path(latency.__file__).parents[1], re.compile(r"[*/] *(1000|1e3|1_000|1e-3)\b")
    files = [
        path
        for package in ("latency", "reparam", "deploy", "search", "lathe")
        for path in (root / package).rglob("*.py")
    ]
    assert len(files) > 50
    found = [
        f"{path}:{token.start[0]}"
        for path in files
        if path.name != "units.py"
        for token in tokenize.generate_tokens(iter(path.read_text().splitlines(keepends=True)).__next__)
        if token.type == tokenize.NUMBER
        and token.string in ("1000", "1e3", "1_000", "1e-3", "0.001")
        and factor.search(token.line)
    ]
    assert found == []


def test_milliseconds_begin_at_one():
    assert (microseconds(999.94), microseconds(1000.0)) == ("999.9 µs", "1.000 ms")


def test_latencies_beside_one_another_share_a_unit():
    """The smallest decides, so that none loses its digits."""
    assert unit_for([950.0, 12345.6]).words(12345.6) == "12,345.6 µs"
    assert unit_for([1950.0, 12345.6]).words(12345.6) == "12.346 ms"
    assert unit_for([]).name == "µs"
    assert interval(Latency(us=1100.0, low_us=990.0, high_us=1200.0, source="predicted")) == "1.100 ms (0.990 to 1.200)"


def test_predictions_and_measurements_read_alike():
    predicted = Latency(us=110.0, low_us=103.1, high_us=1169.0, source="predicted")
    measured = Measurement(samples_us=(110.0,), median_us=110.0, low_us=103.1, high_us=1169.0, status="ok")
    assert interval(predicted) == interval(measured) == "110.0 µs (103.1 to 1,169.0)"


def test_what_should_be_known_of_a_latency_stands_behind_it():
    replayed = Latency(us=110.0, low_us=103.1, high_us=120.0, source="predicted", origin="replayed from a recording")
    assert interval(replayed) == "110.0 µs (103.1 to 120.0), replayed from a recording"
    shaky = Measurement(
        samples_us=(110.0,),
        median_us=110.0,
        low_us=103.1,
        high_us=120.0,
        p90_us=130.0,
        p99_us=1500.0,
        status="unstable",
        reason="why",
    )
    assert interval(shaky) == "110.0 µs (103.1 to 120.0), p90 130.0 µs, p99 1,500.0 µs, unstable: why"
