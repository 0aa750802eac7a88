"""Load the network of a bundle on a machine that can run it."""

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
from deploy.shapes import shapes_at
from latency.backends.engines import EngineSpec


@contextlib.contextmanager
def start(directory: str | Path) -> Iterator[Running]:
    """Start the network of a bundle on this machine: `Running.outputs` runs it on inputs by name, each [calls, *shape].

    Its resources are released at the end.

    Raises:
        BundleError: there is no bundle; the file to load was changed or is missing; the engine is for another GPU or
            version of TensorRT, in which case the message has the command that rebuilds it; or this machine cannot run
            it, with the runtime's message.
    """
    with running_bundle(bundle.load(directory)) as started:
        if isinstance(started, str):
            raise BundleError(f"{directory} cannot be loaded here: {started}")
        yield started


@contextlib.contextmanager
def running_bundle(shipped: Bundle, timed_on: Mapping[str, np.ndarray] | None = None) -> Iterator[Running | str]:
    """Like `start`, for a loaded bundle; yields the reason if this machine cannot run it.

    Args:
        shipped: the bundle.
        timed_on: as in `engine.running`.

    Raises:
        BundleError: a required file is missing or changed.
    """
    files, manifest = shipped.manifest.files, shipped.manifest
    model = shipped.read(manifest.half or bundle.ONNX)
    built = shipped.read(bundle.ENGINE) if bundle.ENGINE in files else b""
    threads = max(min(manifest.device.threads if manifest.device else 1, os.cpu_count() or 1), 1)
    try:
        spec = msgspec.convert(manifest.build, EngineSpec) if built else None
    except msgspec.ValidationError as error:
        raise BundleError(
            f"{shipped.directory}: the engine's build options are not those of this version of Lathe: {error}"
        ) from error
    start = functools.partial(
        engine.running,
        manifest.target,
        model,
        built,
        threads=threads,
        spec=spec,
        usual=shapes_at(manifest.spans, "opt"),
    )
    with start(timed_on=timed_on, refuse=shipped.misfit) as started:
        yield started
