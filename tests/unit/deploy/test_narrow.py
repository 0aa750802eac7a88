import numpy as np
import onnx
import pytest

from deploy.narrow import BF16, FP16, NARROW


@pytest.mark.parametrize(("narrow", "largest"), [(FP16, 65504.0), (BF16, float.fromhex("0x1.fep127"))])
def test_the_numpy_type_has_the_range_of_the_precision(narrow, largest):
    assert narrow.dtype.itemsize == 2
    assert float(np.float32(largest).astype(narrow.dtype)) == largest
    with np.errstate(over="ignore"):
        assert np.isinf(np.float64(2 * largest).astype(narrow.dtype))


@pytest.mark.parametrize("narrow", NARROW.values(), ids=NARROW)
def test_whole_numbers_are_exact_up_to_the_stated_one_and_no_further(narrow):
    numbers = np.arange(-narrow.exact, narrow.exact + 1, dtype=np.float32)
    assert (numbers.astype(narrow.dtype).astype(np.float32) == numbers).all()
    beyond = np.float32(narrow.exact + 1)
    assert beyond.astype(narrow.dtype).astype(np.float32) != beyond


@pytest.mark.parametrize(("narrow", "word"), [(FP16, "tensor(float16)"), (BF16, "tensor(bfloat16)")])
def test_convolutions_and_pools_of_the_operator_set_take_the_type(narrow, word):
    def takes(op, opset):
        schema = onnx.defs.get_schema(op, opset)
        return word in {kind for constraint in schema.type_constraints for kind in constraint.allowed_type_strs}

    ops = ("Conv", "AveragePool", "GlobalAveragePool")
    assert all(takes(op, narrow.opset) for op in ops)
    assert narrow.opset == 1 or not any(takes(op, narrow.opset - 1) for op in ops)


def test_a_precision_is_found_by_its_name():
    assert {name: narrow.name for name, narrow in NARROW.items()} == {"fp16": "fp16", "bf16": "bf16"}
