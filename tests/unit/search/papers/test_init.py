import pytest

from search import SearchError, papers


@pytest.mark.parametrize("name", papers.names())
def test_what_should_be_equal_is(name):
    verdicts = {row.verdict for row in papers.rows(name)}
    assert "SAME" in verdicts
    assert "DIFFERS" not in verdicts


def test_rows_without_a_number_of_ours_say_why():
    assert all(row.note for name in papers.names() for row in papers.rows(name) if row.ours is None)


def test_an_unknown_paper_is_refused():
    with pytest.raises(
        SearchError,
        match="unknown paper 'vgg': known are repvgg, pas, tas, vp-darts, prunet, gpunet and latencies; try `lathe paper repvgg`",
    ):
        papers.rows("vgg")
