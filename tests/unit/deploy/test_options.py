import re

import numpy as np
import pytest

from deploy import Build, DeployError, Form
from deploy.options import plan_export
from latency.backends.engines import EngineSpec


def test_a_plan_completes_the_precision_by_its_target(monkeypatch):
    monkeypatch.setattr("deploy.engine.runtime_of", lambda target: target)
    plain, half = plan_export("onnxruntime"), plan_export("tensorrt-rtx", budget_ms=0.5)
    assert (plain.precision, plain.form.precision, plain.budget_us) == ("fp32", "fp32", None)
    assert (half.precision, half.form.precision, half.budget_us) == ("fp16", "fp16", 500.0)
    assert half.spec == EngineSpec()
    spec = EngineSpec(optimization_level=1)
    assert plan_export("tensorrt-rtx", build=Build(spec=spec)).spec == spec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "coreml"}, "target 'coreml' is unknown: choose one of onnxruntime, tensorrt, tensorrt-rtx"),
        (
            {"form": Form(precision="bf16")},
            "target 'onnxruntime' ships precision 'fp32', not 'bf16': leave it out, or choose tensorrt-rtx",
        ),
        ({"form": Form(precision="fp16")}, "target 'onnxruntime' ships precision 'fp32', not 'fp16'"),
        (
            {"form": Form(io="fp16")},
            "io 'fp16' needs half precision in between, 'onnxruntime' ships 'fp32' here: leave it out",
        ),
        *(
            (
                {"budget_ms": value},
                rf"budget_ms must be above 0 and at most 1e\+09 milliseconds, found {re.escape(str(value))}",
            )
            for value in (0.0, -1.0, 1e10, np.inf, np.nan)
        ),
        ({"build": Build(count=2)}, "target 'onnxruntime' builds no engine"),
        ({"build": Build(count=0)}, "builds must be at least 1, found 0"),
        ({"build": Build(spec=EngineSpec())}, "target 'onnxruntime' builds no engine"),
        ({"build": Build(timing_cache="cache")}, "target 'onnxruntime' builds no engine"),
        ({"threads": 0}, "threads must be at least 1, found 0"),
    ],
)
def test_options_that_a_target_lacks_are_one_line(options, message):
    with pytest.raises(DeployError, match=message) as caught:
        plan_export(**{"target": "onnxruntime"} | options)
    assert "\n" not in str(caught.value)
