import numpy as np
import onnx
from onnx import TensorProto, helper

from deploy.precision import certified
from unit.deploy.graphs import EYE, HUGE, conv, kinds, made, relu

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)


def test_islands_with_only_light_nodes_between_them_are_one():
    nodes = [
        conv("x", "a"),
        conv("a", "b", "huge"),
        conv("b", "c", "tiny"),
        relu("c", "d"),
        helper.make_node("Neg", ["d"], ["e"], "e"),
    ]
    nodes += [conv("e", "f", "huge"), conv("f", "g", "tiny"), conv("g", "y")]
    light = made(nodes, {"w": EYE, "huge": HUGE, "tiny": 1 / 1e6 * EYE})
    half, certificate = certified(light.SerializeToString(), X)
    assert (certificate.casts, certificate.islands) == (4, 1)
    assert {kept.node: kept.reason.split(":")[0] for kept in certificate.kept if kept.node in "de"} == dict.fromkeys(
        "de", "between FP32 nodes"
    )
    heavy = made(
        [conv("d", "e") if node.name == "e" else node for node in nodes],
        {"w": EYE, "huge": HUGE, "tiny": 1 / 1e6 * EYE},
    )
    half, certificate = certified(heavy.SerializeToString(), X)
    assert (certificate.casts, certificate.islands) == (6, 2)
    assert kinds(onnx.load_from_string(half))["e"] == TensorProto.FLOAT16


def test_an_island_at_an_fp32_end_needs_no_casts_there():
    nodes = [relu("x", "a"), conv("a", "b", "huge"), conv("b", "c", "tiny"), conv("c", "y")]
    model = made(nodes, {"w": EYE, "huge": HUGE, "tiny": 1 / 1e6 * EYE})
    _, certificate = certified(model.SerializeToString(), X)
    assert (certificate.casts, [kept.node for kept in certificate.kept]) == (2, ["a", "b", "c"])
