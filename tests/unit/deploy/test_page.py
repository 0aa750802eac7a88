from deploy import page
from deploy.page import Bar, Gauge, Section, TableCell


def test_columns_that_hold_nothing_are_left_out():
    lines = [("a", "", "1"), [TableCell("why", "reason", whole=True)], ("b", "", "")]
    found = page._without_empty_columns(Section(columns=("name", "score", "limit"), lines=lines))
    assert found.columns == ("name", "limit")
    assert found.lines == [["a", "1"], [TableCell("why", "reason", whole=True)], ["b", ""]]


def test_a_gauge_has_room_for_every_interval():
    gauge = Gauge(
        "latency", (Bar("unpruned", 100.0, "", "bar", low=80.0, high=200.0), Bar("shipped", 50.0, "", "bar chosen"))
    )
    assert [gauge.share(bar.value) for bar in gauge.bars] == ["50.00%", "25.00%"]


def test_every_verdict_has_a_look():
    looks = {
        verdict: page.look_of(verdict) for verdict in ("met", "missed", "unsure", "not run", "reference", "no budget")
    }
    assert looks == {
        "met": "good",
        "missed": "bad",
        "unsure": "unsure",
        "not run": "notrun",
        "reference": "",
        "no budget": "",
    }
