import json

import pytest

from deploy.certificate import Certificate, Kept
from deploy.inspection import FullLayer, inspect

CERTIFICATE = Certificate(
    samples=1,
    headroom=2.0,
    nodes=5,
    casts=2,
    islands=1,
    kept=(Kept(node="up", op="Conv", reason="up reaches 1e+06, more than 32752"),),
    tensors=(),
    weights=(),
)


def layer(name, kind, metadata="", key="Format/Datatype"):
    return {"Name": name, "LayerType": "kgen", "Outputs": [{"Name": "t", key: kind}], "Metadata": metadata}


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (
            layer("fused", "Row major linear FP32 format", "[ONNX Layer: up]\x1f[ONNX Layer: relu]"),
            "up: up reaches 1e+06, more than 32752",
        ),
        (layer("up + relu", "Float"), "up: up reaches 1e+06, more than 32752"),
        (
            layer("cast_y", "Float", "[ONNX Layer: cast_y]", "DataType"),
            "it casts to the type of an output or of an FP32 island",
        ),
        (layer("down", "Float"), "the certificate has no reason"),
    ],
)
def test_layers_that_run_in_fp32_are_listed_with_the_reason_of_the_certificate(found, reason):
    narrow = [
        layer(name, kind)
        for name, kind in (("a", "Half"), ("b", "Channel major FP16 format"), ("c", "BFloat16"), ("d", "Int8"))
    ]
    said = inspect(json.dumps({"Layers": [*narrow, found], "Bindings": ["x", "y"]}), CERTIFICATE)
    assert (said.layers, said.full) == (5, (FullLayer(name=found["Name"], reason=reason),))
    assert str(said) == f"1 of 5 layers of the engine run in FP32: {found['Name']} ({reason})"


@pytest.mark.parametrize(
    ("information", "reason"),
    [
        ("nonsense", "the inspector's words are not understood"),
        ("[]", "the inspector's words are not understood"),
        ('{"Layers": ["conv + relu"]}', "the engine tells the names of its layers only"),
    ],
)
def test_what_an_inspector_does_not_tell_is_said(information, reason):
    said = inspect(information, CERTIFICATE)
    assert (said.layers, said.full, str(said)) == (0, (), f"layers of the engine: not run: {reason}")
