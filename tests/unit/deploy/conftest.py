import shutil
from pathlib import Path

import pytest
import torch

from deploy import Evidence, Record, export
from latency import Latency
from unit.deploy.helpers import QUICK, example, network, samples


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A bundle for ONNX Runtime with all that it can hold; made once, to be copied by whoever changes it."""
    return export(
        network(),
        example(),
        target="onnxruntime",
        out=tmp_path_factory.mktemp("export") / "bundle",
        budget_ms=10_000.0,
        protocol=QUICK,
        evidence=Evidence(samples=samples(), labels=torch.arange(12) % 4, baseline=network(masked=False)),
        record=Record(
            predicted=Latency(us=50.0, low_us=49.0, high_us=51.0, source="predicted"),
            predicted_baseline=Latency(us=80.0, low_us=79.0, high_us=81.0, source="predicted"),
            classes=["a", "b", "c", "d"],
            preprocessing={"mean": [0.5, 0.5, 0.5]},
            provenance={"table": "ab" * 32},
            attachments={"architecture.json": b'{"layers": [{"name": "first", "width": 4, "of": 8}]}'},
        ),
    )


@pytest.fixture
def bundle_copy(made, tmp_path) -> Path:
    return Path(shutil.copytree(made.directory, tmp_path / "bundle"))
