import pytest
from hypothesis import given
from hypothesis import strategies as st

from latency import BlockSpec, LatencyError

NAMES = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
ATTRS = st.dictionaries(NAMES, st.integers(-(10**6), 10**6) | NAMES, max_size=4)
WIDTHS = st.dictionaries(NAMES, st.integers(1, 10**6), max_size=3)
BASE = {"attrs": {"h": 8, "w": 8}, "widths": {"c_in": 3, "c_out": 16}}


@given(op=NAMES, attrs=ATTRS, widths=WIDTHS, size=st.integers(1, 512), c_in=st.integers(1, 4096))
def test_parse_is_the_inverse_of_key(op, attrs, widths, size, c_in):
    spec = BlockSpec.of(op, attrs={**attrs, "h": size, "w": size}, widths={**widths, "c_in": c_in})
    assert BlockSpec.parse(spec.key) == spec
    assert hash(BlockSpec.parse(spec.key)) == hash(spec)
    assert spec.key.startswith(spec.family + "[c_in=")


def test_key_is_canonical_whatever_the_order():
    spec = BlockSpec.of(
        "irb", attrs={"w": 14, "stride": 1, "act": "swish", "h": 7}, widths={"c_out": 16, "hidden": 96, "c_in": 3}
    )
    assert spec.key == "irb(act=swish,h=7,stride=1,w=14)[c_in=3,hidden=96,c_out=16]"
    assert spec.family == "irb(act=swish,h=7,stride=1,w=14)"
    assert (spec.width("hidden"), spec.attr("act"), spec.input_elements) == (96, "swish", 3 * 7 * 14)


def test_with_widths_changes_only_those():
    spec = BlockSpec.of("conv", **BASE)
    assert dict(spec.with_widths(c_out=8).widths) == {"c_in": 3, "c_out": 8}
    assert spec.with_widths(c_out=8).attrs == spec.attrs
    assert dict(spec.widths) == BASE["widths"]


@pytest.mark.parametrize(
    ("op", "attrs", "widths", "words"),
    [
        ("Conv", {}, {}, "'Conv'"),
        ("conv", {"a b": 1}, {}, "'a b'"),
        ("conv", {"act": "a,b"}, {}, "act='a,b'"),
        ("conv", {"act": "3"}, {}, "act='3'"),
        ("conv", {"se": True}, {}, "se=True"),
        ("conv", {}, {"c_in": 0}, "c_in=0"),
        ("conv", {}, {"c_out": True}, "c_out=True"),
    ],
)
def test_what_a_key_cannot_hold_is_refused(op, attrs, widths, words):
    with pytest.raises(LatencyError, match=words):
        BlockSpec.of(op, attrs={**BASE["attrs"], **attrs}, widths={**BASE["widths"], **widths})


def test_resolution_and_input_width_are_needed():
    with pytest.raises(LatencyError, match="lacks w, c_in"):
        BlockSpec.of("conv", attrs={"h": 1}, widths={"c_out": 1})


@pytest.mark.parametrize(
    "key",
    [
        "",
        "conv",
        "conv(h=8,w=8)",
        "conv(w=8,h=8)[c_in=3]",
        "conv(h=8,w=8)[c_out=3,c_in=3]",
        "conv(h=08,w=8)[c_in=3]",
        "conv(h=8,h=8,w=8)[c_in=3]",
        "conv(h=8,w=8)[c_in=relu]",
        "conv(h=8,w=8)[c_in=3] ",
        "conv(h,w=8)[c_in=3]",
    ],
)
def test_what_is_no_key_is_refused(key):
    with pytest.raises(LatencyError, match="block"):
        BlockSpec.parse(key)


@pytest.mark.parametrize(
    ("key", "title", "channels"),
    [
        ("conv(act=relu,h=32,kernel=3,stride=2,w=16)[c_in=3,c_out=16]", "conv 3x3/2 relu @32x16", "3 → 16"),
        (
            "irb(act=swish,h=8,kernel=5,residual=1,se=0,stride=1,w=8)[c_in=8,hidden=48,c_out=8]",
            "irb 5x5 swish residual @8x8",
            "8 → 48 → 8",
        ),
        (
            "conv(act=none,groups=4,h=8,kernel=1,kernel_w=3,pad=0,stride=1,w=8)[c_in=8,c_out=8]",
            "conv 1x3 groups=4 pad=0 @8x8",
            "8 → 8",
        ),
        ("head(h=4,w=4)[c_in=128,c_out=10]", "head @4x4", "128 → 10"),
    ],
)
def test_a_block_is_told_in_few_words(key, title, channels):
    spec = BlockSpec.parse(key)
    assert (spec.title, spec.channels) == (title, channels)
