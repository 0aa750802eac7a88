import pytest

from latency import LatencyError
from latency.arguments import require_sound


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile", ""], "word 2 of the command line is empty"),
        (["profile", " \t"], "word 2 of the command line is empty"),
        (["profile", "a\udcff"], "is not UTF-8"),
        (["--out", "a", "--out", "a"], "--out is given twice"),
        (["--out=a", "--out", "b"], "--out is given twice"),
        (["--budget_ms", "1", "--budget-ms=2"], "--budget-ms is given twice"),
        (["--json", "--no-json"], "--json is given twice"),
    ],
)
def test_what_no_command_line_may_have(words, said):
    with pytest.raises(LatencyError, match=said):
        require_sound(words)


def test_a_sound_command_line():
    require_sound(["table", "diff", "a", "a", "--out", "-1", "--", "--out"])
    require_sound(["--shape", "a=1", "--shape", "b=1"], repeatable=["--shape"])
