"""Several builds of one engine.

A builder that times kernels may choose different ones each time, so the fastest engine is kept.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass

import msgspec

from deploy import engine
from deploy.bundle import EngineBuilds
from deploy.engine import Running
from latency import Protocol
from latency.backends.engines import TimingCache
from latency.errors import RunFailed


@dataclass(frozen=True)
class Candidate:
    """One build: its engine, empty if the target has none, and the builder's measurements."""

    engine: bytes
    cache: TimingCache | None


def choose_fastest(
    candidates: Sequence[Candidate], start: Callable[[bytes], AbstractContextManager[Running | str]], protocol: Protocol
) -> tuple[Candidate, EngineBuilds]:
    """Return the fastest of several builds, timed in turns; the first if all are identical or they cannot be timed.

    Args:
        candidates: builds in the order in which they were made.
        start: starts an engine, or returns why it cannot run.
        protocol: timing protocol.
    """
    by_bytes: dict[bytes, Candidate] = {}
    for candidate in candidates:
        by_bytes.setdefault(candidate.engine, candidate)
    different = list(by_bytes.values())
    builds = EngineBuilds(count=len(candidates), different=len(different))
    if len(different) == 1:
        return candidates[0], builds
    with ExitStack() as stack:
        running = [stack.enter_context(start(candidate.engine)) for candidate in different]
        timed = {str(number): started.timed for number, started in enumerate(running) if not isinstance(started, str)}
        if reason := next((started for started in running if isinstance(started, str)), ""):
            return candidates[0], msgspec.structs.replace(builds, reason=reason)
        try:
            medians_us = [measured.median_us for measured in engine.measure_in_turns(timed, protocol).values()]
        except RunFailed as error:
            return candidates[0], msgspec.structs.replace(builds, reason=str(error))
    fastest = medians_us.index(min(medians_us))
    return different[fastest], msgspec.structs.replace(builds, medians_us=tuple(medians_us))
