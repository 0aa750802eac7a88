import msgspec
import numpy as np
import pytest

from deploy.certificate import LARGEST, SMALLEST_NORMAL, VANISHING, Certificate, Kept, TensorRange


def certificate(kept=0, islands=0, tensors=(), **fields):
    nodes = tuple(Kept(node=f"n{number}", op="Exp", reason="overflows") for number in range(kept))
    facts = {"samples": 8, "headroom": 2.0, "nodes": 9, "casts": 4, "weights": ()} | fields
    return Certificate(kept=nodes, islands=islands, tensors=tensors, **facts)


def seen(name, max_abs):
    return TensorRange(name=name, node=name, op="Conv", max_abs=max_abs, subnormal=0.0, vanishing=0.0)


def test_the_limits_are_those_of_half_precision():
    half = np.finfo(np.float16)
    assert (float(half.max), float(half.smallest_normal)) == (LARGEST, SMALLEST_NORMAL)
    assert np.float16(VANISHING) == 0
    assert np.float16(np.nextafter(VANISHING, 1)) > 0


@pytest.mark.parametrize(
    ("found", "summary"),
    [
        (certificate(), "every node is FP16, 4 casts; no activations were looked at"),
        (certificate(precision="bf16"), "every node is BF16, 4 casts; no activations were looked at"),
        (certificate(1, 1), "1 node in 1 island stays FP32, 4 casts; no activations were looked at"),
        (certificate(3, 2), "3 nodes in 2 islands stay FP32, 4 casts; no activations were looked at"),
        (
            certificate(tensors=(seen("a", 3.0), seen("b", 70123.4), seen("c", 5.0))),
            "every node is FP16, 4 casts; largest |x| 7.012e+04 at b of 8 samples",
        ),
    ],
)
def test_the_summary_tells_what_stays_fp32_and_the_largest_activation(found, summary):
    assert found.summary == summary


@pytest.mark.parametrize(
    ("field", "wrong"), [("casts", -1), ("headroom", -1.0), ("precision", "fp8"), ("tensors", [{"name": "a"}])]
)
def test_a_certificate_that_cannot_be_is_refused_with_its_field(field, wrong):
    content = msgspec.to_builtins(certificate(2, 1, (seen("a", 1.0),)))
    assert msgspec.convert(content, Certificate).islands == 1
    with pytest.raises(msgspec.ValidationError, match=rf"\$\.{field}"):
        msgspec.convert(content | {field: wrong}, Certificate)
