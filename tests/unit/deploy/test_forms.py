import numpy as np
import pytest
import torch
from torch import nn

from deploy import DeployError, Evidence, Form, to_onnx
from deploy.evidence import data_of
from deploy.forms import source_of
from deploy.options import plan_export
from unit.deploy.helpers import example, network, samples

PLAN = plan_export("onnxruntime")


def forms(model, example_input=None, architecture=None):
    source = source_of(model, example_input, PLAN)
    return source.forms(PLAN, data_of(Evidence(samples=samples()), source.inputs, None, "fp32").samples, architecture)


def test_a_module_is_fused_squeezed_and_lowered_in_turn():
    made = forms(network(), example(), b"{}")
    assert [(link.name, link.made_from) for link in made.chain] == [
        ("architecture", ""),
        ("trained", "architecture"),
        ("fused", "trained"),
        ("squeezed", "fused"),
        ("onnx", "squeezed"),
    ]
    assert [rung.name for rung in made.rungs] == ["trained", "fused", "squeezed", "onnx"]
    assert {step.verdict for step in made.proofs} == {"reference", "passed"}
    assert (made.onnx_half, made.shipped, made.output_spans()) == (b"", made.onnx, {})
    assert any(layer.kept < layer.of for layer in made.layers)


def test_an_onnx_file_is_cleaned_and_kept_beside_what_came():
    data = to_onnx(nn.Sequential(nn.Conv2d(3, 2, 1)), example())
    made = forms(data)
    assert [(link.name, link.made_from) for link in made.chain] == [("original", ""), ("onnx", "original")]
    assert [rung.precision for rung in made.rungs] == ["fp32", "fp32"]
    outputs = [rung.run({"input": np.ones((2, 1, 3, 8, 8), np.float32)}) for rung in made.rungs]
    np.testing.assert_array_equal(outputs[0]["output"], outputs[1]["output"])


def test_the_unpruned_network_takes_the_same_inputs():
    source = source_of(network(), example(), PLAN)
    drawn = data_of(Evidence(), source.inputs, source.examples, "fp32").samples
    unpruned = source.baseline(network(False), example(), PLAN, drawn)
    assert unpruned.counts.macs > source.forms(PLAN, drawn, None).counts.macs
    with pytest.raises(
        DeployError, match=r"^baseline takes float32 \[1, 4, 8, 8\], the network float32 \[1, 3, 8, 8\]: they must"
    ):
        source.baseline(nn.Conv2d(4, 2, 1), torch.zeros(1, 4, 8, 8), PLAN, drawn)


def test_shapes_are_of_onnx_models_and_examples_of_modules():
    with pytest.raises(DeployError, match="^shapes are of an ONNX model"):
        source_of(network(), example(), plan_export("onnxruntime", form=Form(shapes={"input": (1, 3, 8, 8)})))
    with pytest.raises(DeployError, match="give example_input$"):
        source_of(network(), None, PLAN)
