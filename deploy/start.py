"""Load what a bundle ships, where it may be loaded."""

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np

from deploy import bundle, engine
from deploy.bundle import Bundle
from deploy.engine import Running
from deploy.errors import BundleError
from deploy.shapes import at
from latency.backends.tensorrt import EngineSpec


@contextlib.contextmanager
def start(directory: str | Path) -> Iterator[Running]:
    """The network of a bundle, at work on this machine: `Running.outputs` runs it on whole inputs by name, [calls, *shape] of each.

    What it holds is released at the end.

    Raises:
        BundleError: there is no bundle; the file to load was changed or is missing; or it is an engine for another GPU or another version
            of TensorRT, in which case the message has the command that builds it again; or this machine cannot run it, in its own words.
    """
    with running(bundle.load(directory)) as at_work:
        if isinstance(at_work, str):
            raise BundleError(f"{directory} cannot be loaded here: {at_work}")
        yield at_work


@contextlib.contextmanager
def running(found: Bundle, timed_on: Mapping[str, np.ndarray] | None = None) -> Iterator[Running | str]:
    """As `start`, of a bundle that was read; yields the reason where this machine cannot run it.

    Args:
        found: the bundle.
        timed_on: as in `engine.running`.

    Raises:
        BundleError: a file that it needs is missing or changed.
    """
    files, manifest = found.manifest.files, found.manifest
    model = found.read(manifest.half or bundle.ONNX)
    built = found.read(bundle.ENGINE) if bundle.ENGINE in files else b""
    threads = max(min(manifest.device.threads if manifest.device else 1, os.cpu_count() or 1), 1)
    try:
        spec = msgspec.convert(manifest.build, EngineSpec) if built else None
    except msgspec.ValidationError as error:
        raise BundleError(f"{found.directory}: the engine's build options are not those of this version of Lathe: {error}") from error
    start = functools.partial(engine.running, manifest.target, model, built, threads=threads, spec=spec, usual=at(manifest.spans, "opt"))
    with start(timed_on=timed_on, refuse=found.misfit) as at_work:
        yield at_work
