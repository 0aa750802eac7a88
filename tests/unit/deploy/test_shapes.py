import pytest
from onnx import TensorProto, helper

from deploy import LoweringError
from deploy.shapes import (
    Span,
    fix_shapes,
    fix_spans,
    inputs,
    parse_shape,
    parse_shapes,
    parse_spans,
    require_static_inputs,
    sizes,
)


def value(name, shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(*values):
    node = helper.make_node("Sum", [each.name for each in values], ["y"])
    return helper.make_model(helper.make_graph([node], "g", list(values), [value("y", ["n", "m"])]))


def shape(of):
    return [dim.dim_value or dim.dim_param or None for dim in of.type.tensor_type.shape.dim]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("x=1x3x224x224", ("x", (1, 3, 224, 224))), ("x=7", ("x", (7,))), ("a=b:0=2x2", ("a=b:0", (2, 2)))],
)
def test_a_shape_is_read(text, expected):
    assert parse_shape(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "x", "x=", "=1x3", "x=1,3", "x=0x3", "x=-1x3", "x=1x", "x=1X3", "x=99999999999", "x=1x３", "x=1x3x224\n"],
)
def test_another_form_of_shape_is_refused(text):
    with pytest.raises(LoweringError, match="give the name of an input and its sizes, such as input=1x3x224x224"):
        parse_shape(text)


def test_each_input_has_one_shape():
    assert parse_shapes(["a=1x2", "b=3"]) == {"a": (1, 2), "b": (3,)}
    with pytest.raises(LoweringError, match="shape of 'a': it is given twice, 1x2 and 3"):
        parse_shapes(["a=1x2", "a=3"])


def test_a_symbol_has_one_size_in_all_inputs():
    found = model(value("a", ["n", 3]), value("b", ["n", "m"]), value("c", [None, 3]))
    fix_shapes(found, {"a": (2, 3), "c": (2, 3)})
    assert [shape(each) for each in found.graph.input] == [[2, 3], [2, "m"], [2, 3]]
    assert shape(found.graph.output[0]) == [None, None]


def test_an_input_without_a_shape_gets_one():
    found = model(value("a", None))
    fix_shapes(found, {"a": (2, 3)})
    assert shape(found.graph.input[0]) == [2, 3]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"z": (1, 3)}, "shape of 'z': the model has no such input, its inputs are a, b"),
        ({"a": (1, 3, 3)}, r"shape of 'a': 1x3x3 has 3 dimensions, the input has \(n, 3\)"),
        ({"a": (1, 4)}, r"shape of 'a': 1x4 does not fit \(n, 3\), of which only dynamic sizes can be chosen$"),
        ({"a": (1, 3), "b": (2, 3)}, r"shape of 'b': 2x3 does not fit \(n, 3\), 'n' is already 1: give it one size$"),
        ({"a": (0, 3)}, r"every size must be a whole number above 0, found \(0, 3\)"),
        ({"a": (True, 3)}, "every size must be a whole number above 0"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(shapes, message):
    with pytest.raises(LoweringError, match=message):
        fix_shapes(model(value("a", ["n", 3]), value("b", ["n", 3])), shapes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            [value("x", ["N", 3, "H", "W"])],
            r"input 'x' has a dynamic shape \(N, 3, H, W\): fix it, as by --shape x=1x3x224x224$",
        ),
        ([value("x", None)], "input 'x' has no shape: fix it, as by --shape x=1x3x224x224$"),
        (
            [value("x", [0, 3])],
            r"input 'x' has a size that is not above 0 in its shape \(0, 3\): fix it, as by --shape x=1x3$",
        ),
        ([value("a", [None]), value("b", [1]), value("my input", ["n", 5])], "--shape a=1 --shape 'my input=1x5'$"),
    ],
)
def test_the_refusal_of_a_dynamic_shape_can_be_pasted(values, message):
    with pytest.raises(LoweringError, match=message):
        require_static_inputs(values)


def test_what_the_refusal_says_fixes_it():
    found = model(value("a=b", ["n", 3]), value("c d", [None, 3]))
    with pytest.raises(LoweringError) as caught:
        require_static_inputs(inputs(found))
    import shlex

    fix_shapes(
        found, parse_shapes([word for word in shlex.split(str(caught.value).split("as by ")[1]) if word != "--shape"])
    )
    require_static_inputs(inputs(found))


def test_an_input_of_terabytes_is_refused():
    with pytest.raises(
        LoweringError,
        match=r"input 'x' of shape \(1, 1000000000000\) has 1,000,000,000,000 values, at most 134,217,728 are fed",
    ):
        require_static_inputs([value("x", [1, 10**12])])


def test_initializers_are_no_inputs():
    found = model(value("x", [1, 3]), value("w", [1, 3]))
    found.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0]))
    assert [each.name for each in inputs(found)] == ["x"]


def test_three_shapes_are_a_span_and_a_size_that_differs_stays_dynamic_everywhere():
    spans = parse_spans(["a=1x3x8:4x3x8:16x3x9"])
    assert spans == {"a": Span((1, 3, 8), (4, 3, 8), (16, 3, 9))}
    assert (str(spans["a"]), spans["a"].fixed, parse_spans(["a=1x3"])["a"].fixed) == ("1 to 16, 3, 8 to 9", False, True)
    found = model(value("a", ["n", "c", None]), value("b", ["n", "c"]), value("c", [5]))
    assert fix_spans(found, spans) == {**spans, "b": Span((1, 3), (4, 3), (16, 3))}
    assert [sizes(each) for each in inputs(found)] == ["n, 3, a_2", "n, 3", "5"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["a=1x3:2x3"],
            "shape 'a=1x3:2x3': give one shape, or the smallest, the usual and the largest: input=1x3x8x8:8x3x8x8:32x3x8x8$",
        ),
        (["a=2x3:1x3:4x3"], "the smallest, the usual and the largest shape must not fall in any size$"),
        (["a=1x3:1:1x3"], "must not fall"),
        (["a=1x3", "a=1x3:1x3:1x3"], "shape of 'a': it is given twice$"),
        (["a=1x3:2x4:3x5"], r"shape of 'a': 2x4 does not fit \(n, 3\)"),
        (["a=1:x:2"], "shape 'a=x': give the name of an input"),
    ],
)
def test_shapes_that_are_no_span_are_refused(words, message):
    with pytest.raises(LoweringError, match=message):
        fix_spans(model(value("a", ["n", 3])), parse_spans(words))
