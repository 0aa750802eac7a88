import contextlib
from types import SimpleNamespace

import pytest

from deploy.builds import Candidate, choose_fastest
from deploy.engine import Running
from latency import Device, RunFailed, Runtime
from unit.deploy.helpers import QUICK

BUILT = [Candidate(name, None) for name in (b"slow", b"fast", b"slow", b"middle")]
RUNTIME = Runtime(name="tensorrt-rtx", version="1.0")
SPEED_US = {b"slow": 30.0, b"middle": 20.0, b"fast": 10.0}


def start(engine):
    timed = SimpleNamespace(run=lambda count: [SPEED_US[engine]] * count)
    return contextlib.nullcontext(Running(device=Device.cpu(1), runtime=RUNTIME, timed=timed, outputs=dict))


def test_the_fastest_of_the_engines_that_differ_is_kept_and_the_spread_is_said():
    chosen, builds = choose_fastest(BUILT, start, QUICK)
    assert (chosen.engine, builds.medians_us) == (b"fast", (30.0, 10.0, 20.0))
    assert (
        str(builds) == "4 builds are 3 different engines, from 10.0 to 30.0 \u00b5s (200.0% apart); the fastest ships"
    )


def test_equal_engines_are_noticed_and_not_timed():
    chosen, builds = choose_fastest(BUILT[:1] * 3, lambda engine: pytest.fail("started"), QUICK)
    assert (chosen, str(builds)) == (BUILT[0], "3 builds are the same engine")


@pytest.mark.parametrize("broken", ["absent", "failing"])
def test_where_engines_cannot_be_timed_the_first_is_kept_and_the_reason_said(broken):
    def stuck(engine):
        def run(count):
            raise RunFailed("out of memory")

        running = Running(device=Device.cpu(1), runtime=RUNTIME, timed=SimpleNamespace(run=run), outputs=dict)
        return contextlib.nullcontext("no NVIDIA driver found" if broken == "absent" else running)

    chosen, builds = choose_fastest(BUILT, stuck, QUICK)
    reason = "no NVIDIA driver found" if broken == "absent" else "out of memory"
    assert chosen is BUILT[0]
    assert str(builds) == f"4 builds are 3 different engines; the first one ships, as they were not timed: {reason}"
