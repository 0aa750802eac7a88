import pytest

from deploy.explanation import LIMIT, Explanation, GraphErrors, Suspect
from deploy.validate import LIMITS

OFF = Suspect(tensor="b", op="Conv", layer="stem", error=0.034)
BROKEN = Suspect(tensor="c", op="Exp", layer="", error=None)


def errors(first=None, worst=None, beyond=0, tensors=4):
    return GraphErrors(first=first, worst=worst, beyond=beyond, tensors=tensors)


def test_the_limit_is_that_of_outputs():
    assert LIMITS["fp16"] == LIMIT


@pytest.mark.parametrize(
    ("suspect", "words"),
    [(OFF, "b (Conv, layer stem): off by 3.4e-02 of its scale"), (BROKEN, "c (Exp): overflows or becomes NaN")],
)
def test_a_suspect_names_its_layer_if_there_is_one_and_its_error(suspect, words):
    assert str(suspect) == words


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (errors(first=OFF, worst=BROKEN, beyond=2), f"{OFF}, limit 1e-02; 2 of 4 tensors are beyond it"),
        (errors(worst=OFF), f"all 4 tensors are within 1e-02; the largest difference is at {OFF}"),
        (errors(tensors=0), "there are no floating-point tensors to compare"),
    ],
)
def test_of_a_graph_the_first_tensor_beyond_the_limit_is_named_else_the_worst(found, words):
    assert str(found) == words


def test_an_explanation_has_a_line_for_each_graph():
    found = Explanation(samples=3, everywhere=errors(first=BROKEN, worst=BROKEN, beyond=1), certified=errors(worst=OFF))
    assert found.lines == (f"FP16 everywhere: {found.everywhere}", f"FP16 with FP32 islands: {found.certified}")
