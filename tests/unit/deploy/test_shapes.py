import pytest
from onnx import TensorProto, helper

from deploy import LoweringError
from deploy.shapes import fix_shapes, inputs, parse_shape, parse_shapes, require_static_inputs


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
    "text", ["", "x", "x=", "=1x3", "x=1,3", "x=0x3", "x=-1x3", "x=1x", "x=1X3", "x=99999999999", "x=1x３", "x=1x3x224\n"]
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
        ([value("x", ["N", 3, "H", "W"])], r"input 'x' has a dynamic shape \(N, 3, H, W\): fix it, as by --shape x=1x3x224x224$"),
        ([value("x", None)], "input 'x' has no shape: fix it, as by --shape x=1x3x224x224$"),
        ([value("x", [0, 3])], r"input 'x' has a size that is not above 0 in its shape \(0, 3\): fix it, as by --shape x=1x3$"),
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

    fix_shapes(found, parse_shapes([word for word in shlex.split(str(caught.value).split("as by ")[1]) if word != "--shape"]))
    require_static_inputs(inputs(found))


def test_an_input_of_terabytes_is_refused():
    with pytest.raises(
        LoweringError, match=r"input 'x' of shape \(1, 1000000000000\) has 1,000,000,000,000 values, at most 134,217,728 are fed"
    ):
        require_static_inputs([value("x", [1, 10**12])])


def test_initializers_are_no_inputs():
    found = model(value("x", [1, 3]), value("w", [1, 3]))
    found.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [1, 3], [1.0, 2.0, 3.0]))
    assert [each.name for each in inputs(found)] == ["x"]
