"""The narrow floating-point types that a network may compute in."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto, helper


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A narrow floating-point type.

    Attributes:
        name: name of the precision.
        kind: ONNX element type.
        exact: number up to which all whole numbers are exact.
        opset: first operator set whose convolutions and pools support it.
    """

    name: Literal["fp16", "bf16"]
    kind: int
    exact: float
    opset: int

    @property
    def dtype(self) -> np.dtype:
        """The numpy type, from ml_dtypes for bfloat16."""
        return helper.tensor_dtype_to_np_dtype(self.kind)


FP16 = Narrow(name="fp16", kind=TensorProto.FLOAT16, exact=2048.0, opset=1)
BF16 = Narrow(name="bf16", kind=TensorProto.BFLOAT16, exact=256.0, opset=22)
"""It has the range of float32, so nothing overflows or vanishes, but three bits less than half precision."""
NARROW = {"fp16": FP16, "bf16": BF16}
