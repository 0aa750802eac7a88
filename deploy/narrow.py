"""The narrow floating-point types that a network may compute in."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto, helper


@dataclass(frozen=True, kw_only=True)
class Narrow:
    """A narrow floating-point type.

    Attributes:
        name: as precisions are named.
        kind: ONNX's number of the type.
        exact: largest whole number up to which it has every one.
        opset: the first operator set whose convolutions and pools have it.
    """

    name: Literal["fp16", "bf16"]
    kind: int
    exact: float
    opset: int

    @property
    def dtype(self) -> np.dtype:
        """As numpy knows it, with ml_dtypes."""
        return helper.tensor_dtype_to_np_dtype(self.kind)


FP16 = Narrow(name="fp16", kind=TensorProto.FLOAT16, exact=2048.0, opset=1)
BF16 = Narrow(name="bf16", kind=TensorProto.BFLOAT16, exact=256.0, opset=22)
"""The range of float32, so that nothing overflows or vanishes, and three bits less than half precision."""
NARROW = {"fp16": FP16, "bf16": BF16}
