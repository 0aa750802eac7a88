import pytest

from search import ops


@pytest.mark.parametrize(
    ("spec", "key"),
    [
        (ops.conv((3, 9, 7), 24, stride=2, act="swish"), "conv(act=swish,h=9,kernel=3,stride=2,w=7)[c_in=3,c_out=24]"),
        (ops.head((8, 5, 4), 10), "head(h=5,w=4)[c_in=8,c_out=10]"),
        (ops.tail((8, 5, 4), 10, hidden=64), "tail(act=relu,h=5,w=4)[c_in=8,hidden=64,c_out=10]"),
        (
            ops.inverted_residual((16, 8, 8), 16, hidden=32, kernel=5, act="swish", se=True),
            "irb(act=swish,h=8,kernel=5,residual=1,se=1,stride=1,w=8)[c_in=16,hidden=32,c_out=16]",
        ),
        (
            ops.inverted_residual((16, 8, 8), 24, hidden=32, stride=2, fused=True),
            "fused_irb(act=relu,h=8,kernel=3,residual=0,se=0,stride=2,w=8)[c_in=16,hidden=32,c_out=24]",
        ),
    ],
)
def test_keys_are_a_promise_to_tables(spec, key):
    assert spec.key == key


def test_a_residual_needs_equal_shapes():
    assert [
        ops.inverted_residual((16, 8, 8), c_out, hidden=32, stride=stride).attr("residual")
        for c_out, stride in [(16, 1), (24, 1), (16, 2), (24, 2)]
    ] == [1, 0, 0, 0]


def test_strides_halve_odd_resolutions_upwards_as_convolutions_do():
    assert ops.output_shape(ops.conv((3, 9, 7), 24, stride=2)) == (24, 5, 4)
    assert ops.output_shape(ops.inverted_residual((3, 9, 7), 24, hidden=32, stride=2)) == (24, 5, 4)
    assert ops.output_shape(ops.tail((3, 9, 7), 10, hidden=32)) == (10, 1, 1)


def test_the_gate_is_a_quarter_of_the_input_whatever_the_expansion():
    assert [ops.se_width(c_in) for c_in in (1, 24, 64, 96, 160, 288, 448)] == [1, 6, 16, 24, 40, 72, 112]
