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
        (ops.conv((4, 8, 8), 6, groups=2), "conv(act=relu,groups=2,h=8,kernel=3,stride=1,w=8)[c_in=4,c_out=6]"),
        (ops.stem((3, 9, 7), 64), "stem(act=relu,h=9,kernel=7,w=7)[c_in=3,c_out=64]"),
        (
            ops.separable((8, 8, 8), 8, act="relu6"),
            "separable(act=relu6,h=8,kernel=3,residual=1,stride=1,w=8)[c_in=8,c_out=8]",
        ),
        (
            ops.residual((16, 8, 8), 16, hidden=24),
            "basic(act=relu,h=8,kernel=3,shortcut=identity,stride=1,w=8)[c_in=16,hidden=24,c_out=16]",
        ),
        (
            ops.residual((16, 8, 8), 64, hidden=16, stride=2, bottleneck=True),
            "bottleneck(act=relu,h=8,kernel=3,shortcut=conv,stride=2,w=8)[c_in=16,hidden=16,c_out=64]",
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
    assert ops.output_shape(ops.stem((3, 9, 7), 24)) == (24, 3, 2)
    assert ops.output_shape(ops.residual((3, 9, 7), 24, hidden=8, stride=2)) == (24, 5, 4)
    assert ops.output_shape(ops.separable((3, 9, 7), 24, stride=2)) == (24, 5, 4)
    assert ops.output_shape(ops.tail((3, 9, 7), 10, hidden=32)) == (10, 1, 1)


def test_the_gate_is_a_quarter_of_the_input_whatever_the_expansion():
    assert [ops.se_width(c_in) for c_in in (1, 24, 64, 96, 160, 288, 448)] == [1, 6, 16, 24, 40, 72, 112]


def test_a_shortcut_is_a_convolution_where_shapes_differ():
    shortcuts = [
        ops.residual((16, 8, 8), c_out, hidden=8, stride=stride).attr("shortcut")
        for c_out, stride in [(16, 1), (24, 1), (16, 2)]
    ]
    assert shortcuts == ["identity", "conv", "conv"]
    assert [
        ops.separable((16, 8, 8), c_out, stride=stride).attr("residual")
        for c_out, stride in [(16, 1), (24, 1), (16, 2)]
    ] == [1, 0, 0]


def test_what_adds_its_input_as_it_is_keeps_its_width():
    kept = [
        ops.residual((16, 8, 8), 16, hidden=8),
        ops.separable((16, 8, 8), 16),
        ops.inverted_residual((16, 8, 8), 16, hidden=8),
    ]
    assert all(ops.keeps_width(spec) for spec in kept)
    free = [ops.residual((16, 8, 8), 24, hidden=8), ops.separable((16, 8, 8), 24), ops.conv((16, 8, 8), 16)]
    assert not any(ops.keeps_width(spec) for spec in free)


@pytest.mark.parametrize(("c_out", "stride", "norms"), [(8, 1, 3), (8, 2, 2), (16, 1, 2)])
def test_a_repvgg_block_is_trained_with_a_norm_for_each_branch(c_out, stride, norms):
    spec = ops.conv((8, 4, 4), c_out, stride=stride, groups=2)
    pixels = (4 // stride) ** 2
    assert ops.repvgg_counts(spec) == (4 * c_out * 10 + 2 * norms * c_out, 4 * c_out * 10 * pixels)
    assert ops.repvgg_counts(ops.head((8, 4, 4), 5)) == ops.counts(ops.head((8, 4, 4), 5))
