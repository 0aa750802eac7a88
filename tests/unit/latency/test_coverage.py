import itertools
import math

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from latency import BlockSpec, LatencyError, LatencyTable, Workload, profile
from latency.backends.simulated import Simulated, SimulatedSettings
from latency.coverage import Covered, held_out, profile_adaptively, prove
from latency.lowered import overhead_onnx
from latency.profile import Measured, Resumed
from latency.sentinel import OFF


def model(widths, size, kernels):
    """Convolutions one behind the other, as ONNX."""
    nodes, weights = [], []
    for i, (c_in, c_out) in enumerate(itertools.pairwise(widths)):
        pad = kernels[i] // 2
        nodes.append(helper.make_node("Conv", [f"x{i}", f"w{i}"], [f"x{i + 1}"], pads=[pad] * 4))
        weights.append(numpy_helper.from_array(np.zeros((c_out, c_in, kernels[i], kernels[i]), np.float32), f"w{i}"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, channels, size, size])
        for name, channels in (("x0", widths[0]), (f"x{len(nodes)}", widths[-1]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]).SerializeToString()


def two_dimensional(c_in, c_out):
    spec = BlockSpec.of("conv", attrs={"h": 16, "w": 16}, widths={"c_in": c_in, "c_out": c_out})
    return Workload.block(spec, lambda: model([c_in, c_out], 16, [3]))


def bottleneck(hidden):
    spec = BlockSpec.of("irb", attrs={"h": 16, "w": 16}, widths={"c_in": 64, "hidden": hidden, "c_out": 64})
    return Workload.block(spec, lambda: model([64, hidden, 64], 16, [1, 1]))


SPACE = [
    *(two_dimensional(a, b) for a in range(8, 97, 8) for b in range(8, 97, 8)),
    *(bottleneck(w) for w in range(32, 2049, 32)),
]


def adaptively(path, kit, workloads=SPACE, backend=None, error=0.02):
    backend = backend or Simulated(SimulatedSettings(step=64, macs_per_us=20_000.0))

    def measure(some):
        return profile(some, backend, path, protocol=kit.QUICK, lowering="1", safeguards=OFF)

    return profile_adaptively(workloads, path, measure, error=error)


@pytest.fixture(scope="module")
def truth():
    device = Simulated(SimulatedSettings(step=64, macs_per_us=20_000.0))
    return {work.key: device.truth_us(work.onnx()) for work in SPACE}


def test_a_third_of_the_blocks_covers_the_rest_within_two_percent(tmp_path, kit, truth):
    events = list(adaptively(tmp_path / "t.jsonl", kit))
    table = LatencyTable.load(tmp_path / "t.jsonl")
    measured = {row.key for row in table.rows if row.kind == "block"}
    assert len(measured) <= len(SPACE) / 3
    others = [work.key for work in SPACE if work.key not in measured]
    errors = [abs(table.lookup(BlockSpec.parse(key)).us / truth[key] - 1) for key in others]
    assert np.mean(errors) <= 0.02
    last = [event for event in events if isinstance(event, Covered)][-1]
    assert last.done
    assert last.measured == len(measured)
    assert last.proof.mean_error <= 0.02
    assert prove(table).mean_error == pytest.approx(last.proof.mean_error)  # from the table alone
    assert last.proof.held_out == len(measured & held_out([BlockSpec.parse(work.key) for work in SPACE])) > 5


def test_held_out_rows_judge_the_interpolation_and_are_looked_up_as_measured(kit):
    rows = [kit.row(kit.spec(a, b).key, [10.0 + a * b / 64]) for a in range(8, 97, 8) for b in range(8, 97, 8)]
    held = held_out([BlockSpec.parse(row.key) for row in rows])
    assert prove(LatencyTable(kit.header(), rows)).mean_error < 1e-3
    twice = [kit.row(row.key, [2 * row.median_us]) if row.key in held else row for row in rows]
    table = LatencyTable(kit.header(), twice)
    proof = prove(table)
    assert proof.mean_error == pytest.approx(0.5, abs=0.01)
    assert proof.inside == 0
    key = min(held)
    assert table.lookup(BlockSpec.parse(key)).us == next(row.median_us for row in twice if row.key == key)


def test_what_is_held_out_is_no_corner_and_about_one_in_twenty(kit):
    specs = [kit.spec(a, b) for a in range(8, 161, 8) for b in range(8, 161, 8)]
    held = held_out(specs)
    assert 0.03 < len(held) / len(specs) < 0.07
    assert not held & {kit.spec(a, b).key for a in (8, 160) for b in (8, 160)}
    assert held_out(specs[::-1]) == held


def test_a_space_that_is_easy_needs_less(tmp_path, kit):
    plain = kit.FakeBackend(
        lambda key: 10.0 if key == "overhead" else 5.0 + math.prod(w for _, w in BlockSpec.parse(key).widths) / 500
    )
    work = [kit.block(a, b) for a in range(8, 161, 8) for b in range(8, 161, 8)]
    *_, last = (event for event in adaptively(tmp_path / "t.jsonl", kit, work, plain) if isinstance(event, Covered))
    assert last.measured < len(work) / 5


def test_it_resumes_wherever_it_was_stopped_and_comes_to_the_same_rows(tmp_path, kit):
    def cost(key):
        spec = BlockSpec.parse(key) if "[" in key else None
        return 20.0 + math.prod(math.ceil(w / 32) for _, w in spec.widths) * 3 if spec else 2.0

    work = [kit.block(a, b) for a in range(8, 97, 8) for b in range(8, 97, 8)]
    work.append(Workload.network([kit.spec(8, 16), kit.spec(16, 8)], overhead_onnx))
    whole = kit.FakeBackend(cost)
    whole.cost = lambda key: 7.0 if key.startswith("network") else cost(key)
    list(adaptively(tmp_path / "whole.jsonl", kit, work, whole, error=0.001))
    again = kit.FakeBackend(whole.cost)
    path = tmp_path / "t.jsonl"
    for _ in range(100):
        events = adaptively(path, kit, work, again, error=0.001)
        count = 0
        for event in events:
            count += isinstance(event, Measured)
            if count == 7:
                break
        events.close()
        if count < 7:
            break
    keys = [row.key for row in LatencyTable.load(path).history]
    assert len(set(keys)) == len(keys)
    assert set(keys) == {row.key for row in LatencyTable.load(tmp_path / "whole.jsonl").rows}
    assert "overhead" in keys
    assert work[-1].key in keys
    first, *more = adaptively(path, kit, work, again, error=0.001)
    assert first == Resumed(len(keys), first.total)
    assert not [event for event in more if isinstance(event, Measured)]


def test_what_fails_is_no_knot_and_is_tried_once_a_call(tmp_path, kit):
    work = [kit.block(a, b) for a in range(8, 97, 8) for b in range(8, 97, 8)]
    backend = kit.FakeBackend(lambda key: 50.0)
    backend.build_fails = {work[0].key, work[-1].key}
    events = list(adaptively(tmp_path / "t.jsonl", kit, work, backend))
    assert [event for event in events if isinstance(event, Covered)][-1].done
    assert backend.compiled.count(work[0].key) == 1


def test_an_error_that_cannot_be_is_refused(tmp_path, kit):
    with pytest.raises(LatencyError, match=r"--coverage-error must be between 0 and 1, found 0"):
        next(adaptively(tmp_path / "t.jsonl", kit, error=0.0))


def test_a_small_space_is_measured_by_more_than_a_third_where_nothing_could_be_interpolated_otherwise(tmp_path, kit):
    small = [two_dimensional(a, b) for a in range(8, 33, 8) for b in range(8, 33, 8)]
    *_, last = (
        event for event in adaptively(tmp_path / "t.jsonl", kit, small, error=1e-9) if isinstance(event, Covered)
    )
    assert (last.done, last.enough) == (True, False)
    assert len(small) / 3 < last.measured < len(small)
    table = LatencyTable.load(tmp_path / "t.jsonl")
    assert all(table.lookup(BlockSpec.parse(work.key)).us > 0 for work in small)
