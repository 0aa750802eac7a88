"""Block bundles that were written once and are kept: later versions must read them, and draw the same weights for them."""

import hashlib
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from latency import blocks_zip

KEPT = Path(__file__).with_name("blocks-1.blocks.zip")
KEPT_2 = Path(__file__).with_name("blocks-2.blocks.zip")
IRB = "irb(act=swish,h=6,kernel=3,residual=1,se=1,stride=1,w=6)[c_in=8,hidden=32,c_out=8]"
HEAD = "head(h=6,w=6)[c_in=8,c_out=3]"


@pytest.mark.parametrize("kept", [KEPT, KEPT_2])
def test_every_version_is_read(kept):
    found = blocks_zip.read(kept)
    assert (found.index.schema, found.index.lowering, found.index.space, found.index.precision) == (
        "blocks/2",
        "1",
        "example",
        "fp16",
    )
    assert [(work.kind, work.key, work.blocks) for work in found.workloads] == [
        ("block", IRB, ()),
        ("block", HEAD, ()),
        ("network", "network-b423f9d441eb481d", (IRB, HEAD)),
    ]


@pytest.mark.parametrize("kept", [KEPT, KEPT_2])
def test_the_weights_are_the_same_as_ever(kept):
    digest = hashlib.sha256()
    for work in blocks_zip.read(kept).workloads:
        model = onnx.load_from_string(work.lower().onnx)
        onnx.checker.check_model(model, full_check=True)
        for tensor in model.graph.initializer:
            digest.update(numpy_helper.to_array(tensor).tobytes())
    assert digest.hexdigest()[:16] == "61b852f2977d755e"
