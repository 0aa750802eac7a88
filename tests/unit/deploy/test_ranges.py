import numpy as np

from deploy import ranges
from deploy.precision import certified
from unit.deploy.graphs import EYE, HUGE, conv, made, relu

X = np.random.default_rng(0).standard_normal((3, 4, 8, 8)).astype(np.float32)


def test_ranges_do_not_depend_on_how_many_values_are_looked_at_together(monkeypatch):
    model = made([conv("x", "a"), conv("a", "b", "huge"), relu("b", "y")], {"w": EYE, "huge": HUGE}).SerializeToString()
    whole = certified(model, X)
    monkeypatch.setattr(ranges, "CHUNK_BYTES", 1)
    assert certified(model, X) == whole
