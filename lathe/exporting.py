"""Ship, verify and report the source of a command: a run, an ONNX file, or the user's own network."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from latency import backends, files, outputs
from latency import protocol as protocols
from latency.device import require_cores
from latency.errors import DeviceUnavailable, import_extra
from latency.units import interval, microseconds, ms_from_us
from lathe import evidence
from lathe.flags import image_shape
from lathe.tables import load_table

if TYPE_CHECKING:
    from deploy.bundle import Bundle
    from deploy.options import Build
    from deploy.page import ComparisonRow
    from deploy.verify import Verification
    from latency.backends.engines import EngineSpec
    from lathe.cli import ExportCommand, ReportCommand
    from search.architecture import OtherDevice
    from search.finished import FinishedRun


_OPTIONS = {
    "builds": ("tensorrt", "tensorrt-rtx"),
    "workspace_mib": ("tensorrt", "tensorrt-rtx"),
    "optimization_level": ("tensorrt", "tensorrt-rtx"),
    "timing_cache": ("tensorrt",),
    "version_compatible": ("tensorrt",),
    "hardware_compatible": ("tensorrt",),
    "compute_capability": ("tensorrt-rtx",),
}
"""Flags of engine builds, with the targets that support them."""


def by_target(command: "ExportCommand") -> "list[ExportCommand]":
    """Return one command per target.

    If there are several, each writes to its name in --out and keeps the build options it supports.

    Raises:
        LatencyError, DeployError: a target is unknown, not installed or given twice, or does not take the options; or
            --out contains something else.
    """
    if len(command.target) == 1:
        return [command]
    from deploy import engine
    from deploy.errors import DeployError

    targets = [engine.target_of(name) for name in command.target]
    if len(set(targets)) < len(targets):
        raise DeployError(f"--target {' '.join(targets)} names one twice: give each once")
    outputs.require_directory(command.out)
    others = (
        sorted(path.name for path in command.out.iterdir() if path.name not in engine.TARGETS)
        if command.out.is_dir()
        else []
    )
    if others:
        raise DeployError(f"{command.out} holds {others[0]}, which is not a bundle of a target; give another --out")
    unfit = [
        {name for name, fit in _OPTIONS.items() if target not in fit and any(other in fit for other in targets)}
        for target in targets
    ]
    given = {field.name: field.default for field in dataclasses.fields(command)}
    each = [
        dataclasses.replace(
            command, target=(target,), out=command.out / target, **{name: given[name] for name in names}
        )
        for target, names in zip(targets, unfit, strict=True)
    ]
    for single in each:
        _require_target(single)
    return each


def _require_target(command: "ExportCommand") -> None:
    """Require that the only target of a command is installed, takes its options and may be written.

    Raises:
        LatencyError, DeployError: it is not, or does not.
    """
    from deploy import bundle as shipped
    from deploy import triton
    from deploy.options import Form, plan_export

    (named,) = command.target
    planned = plan_export(named, form=Form(precision=command.precision, io=command.io), build=_build(command))
    shipped.refuse_occupied(command.out)
    if command.layout == "triton":
        triton.require_repository(planned.target, _repository(command))


def export(command: "ExportCommand", on_step: Callable[[str], None]) -> "Bundle":
    """Ship a run, or an ONNX file."""
    timing = protocols.get(command.protocol)
    outputs.require_directory(command.out)
    require_cores(command.threads or 1)
    from deploy import bundle as shipped
    from deploy import cleaning, onnxfile, shapes
    from deploy.errors import DeployError
    from deploy.options import Form

    _require_target(command)
    fixed = shapes.parse_spans(command.shape)
    import_extra("torch", "train")
    from search.spaces import own

    ship = partial(
        _shipped,
        command,
        target=command.target[0],
        form=Form(precision=command.precision, io=command.io, shapes=fixed, explain=command.explain),
        build=_build(command),
        out=command.out,
        protocol=timing,
        on_step=on_step,
    )
    if own.is_own(str(command.source)):
        return _export_own(command, ship)
    if given := next((flag for flag in ("weights", "input") if getattr(command, flag) is not None), None):
        raise DeployError(
            f"--{given} is of a network of one's own, FILE.py:FUNCTION: leave it out for {command.source}"
        )
    if not os.path.lexists(command.source):
        raise DeployError(
            f"{command.source} does not exist: give the directory of a finished search, MODEL.onnx or FILE.py:FUNCTION"
        )
    if not command.source.is_dir():
        if command.batch is not None:
            raise DeployError(
                f"--batch {command.batch}: the batch of MODEL.onnx is in its shapes: give --shape, if they are dynamic"
            )
        model = onnxfile.read_model(command.source)
        samples = evidence.given_evidence(command, partial(cleaning.input_shape, model, fixed))
        return _ship_given(command, ship, samples, {"onnx": command.source.name}, model)
    if (command.source / shipped.MANIFEST).is_file():
        source, model = command.source, command.source / shipped.ONNX
        raise DeployError(
            f"{source} is a shipped bundle: `lathe verify {source}` checks it; to ship it anew export {model}"
        )
    for flag in ("samples", "labels", "metric"):
        if (value := getattr(command, flag)) not in (None, ()):
            raise DeployError(
                f"--{flag} {value[0] if flag == 'samples' else value}: a run is validated on its own data: leave it out"
            )
    if command.shape:
        raise DeployError(f"--shape {command.shape[0]}: a run has the input shape of its architecture: leave it out")
    return _export_run(command, ship)


def _repository(command: "ExportCommand") -> Path:
    return command.out.with_name(f"{command.out.name}.triton")


def _shipped(command: "ExportCommand", *arguments: Any, **options: Any) -> "Bundle":
    """Export a bundle, and next to it the model repository if the command asks for it."""
    import deploy
    from deploy import triton

    made = deploy.export(*arguments, **options)
    if command.layout == "triton":
        triton.write_repository(made, _repository(command))
    return made


def _export_own(command: "ExportCommand", ship: "Callable[..., Bundle]") -> "Bundle":
    from deploy.errors import DeployError
    from search.network import load_weights
    from search.spaces import own

    if command.shape:
        raise DeployError(f"--shape {command.shape[0]}: is of MODEL.onnx; give --input 3x224x224")
    name = str(command.source)
    example = own.example_input(name, image_shape(command.input))
    example = example.expand(command.batch or 1, *example.shape[1:]).clone()
    network, provenance = own.maker(name)(), {"module": name}
    if command.weights is not None:
        load_weights(
            network, command.weights, {}, mend="write it as safetensors.torch.save_file(model.state_dict(), PATH)"
        )
        provenance["weights_sha256"] = files.sha256(command.weights)
    return _ship_given(
        command, ship, evidence.given_evidence(command, lambda: example.shape), provenance, network, example
    )


def _ship_given(
    command: "ExportCommand",
    ship: "Callable[..., Bundle]",
    given: evidence.Given,
    provenance: Mapping[str, str],
    *network: Any,
) -> "Bundle":
    """Ship a network, and its example if it is a module, with the validation data of the command line."""
    from deploy.pipeline import Record

    return ship(
        *network,
        evidence=given.evidence,
        record=Record(preprocessing=given.preprocessing, provenance={**provenance, **given.facts}),
        budget_ms=command.budget_ms,
        threads=1 if command.threads is None else command.threads,
    )


def _export_run(command: "ExportCommand", ship: "Callable[..., Bundle]") -> "Bundle":
    import torch

    from deploy.errors import DeployError
    from deploy.evidence import Evidence
    from deploy.pipeline import Record
    from search import data, finished, own_task, record
    from search.spaces import own

    run = command.source
    finished_run = finished.load(run)
    architecture, model, unpruned = finished_run.architecture, finished_run.network(), finished_run.unpruned()
    if architecture.predicted and command.batch not in (None, architecture.batch):
        raise DeployError(
            f"--batch {command.batch}: the run's budget and prediction are of batch {architecture.batch}, that of its "
            "table: leave it out, "
            f"or search with a table of `lathe profile SPACE --batch {command.batch}`"
        )
    if own.is_own(architecture.data):
        task = own_task.load(architecture.data, finished_run.run.data_sha256)
    else:
        task = data.load(architecture.data, architecture.input_shape[1])
    inputs, targets = task.held_out_batch(torch.arange(len(task.held_out)))
    devices = _devices(finished_run)
    home = next((device for device in devices if _is_here(device, command.target[0], _threads(device, command))), None)
    threads = _threads(home or (devices[0] if devices else None), command)
    budget_ms = ms_from_us(home.budget_us) if home and command.budget_ms is None else command.budget_ms
    recorded = [
        record.ARCHITECTURE,
        record.RUN,
        record.HISTORY,
        *([record.USAGE] if (run / record.USAGE).exists() else []),
    ]
    return ship(
        model,
        torch.zeros(command.batch or architecture.batch, *architecture.input_shape),
        budget_ms=budget_ms,
        threads=threads,
        evidence=Evidence(
            samples=inputs,
            labels=targets if task.labels else None,
            quality=None if task.labels else task.quality(model, inputs, targets),
            baseline=unpruned,
        ),
        record=Record(
            predicted=home and home.predicted,
            predicted_baseline=home and finished_run.result.unpruned and home.largest,
            classes=architecture.labels,
            preprocessing=msgspec.to_builtins(architecture.preprocessing or {}),
            provenance={
                **_devices_not_run(devices, home, command.target[0], budget_ms),
                "method": architecture.method,
                "space": architecture.name,
                "seed": str(architecture.seed),
                "weights": files.sha256(run / record.WEIGHTS),
            },
            attachments={name: files.read_bytes(run / name) for name in recorded},
        ),
    )


def _devices_not_run(
    devices: "Sequence[OtherDevice]", home: "OtherDevice | None", target: str, budget_ms: float | None
) -> dict[str, str]:
    """Return facts on the run's devices that this machine is not, and on a budget that nothing gives."""
    facts = {
        f"not run on {device.name}": f"predicted {interval(device.predicted)} by the table {device.table_sha256[:16]}, "
        f"the budget is {microseconds(device.budget_us)}"
        for device in (devices if len(devices) > 1 else ())
        if device is not home
    }
    if budget_ms is None and not devices:
        facts["no budget"] = "the search had no latency table, and counted MACs: give --budget-ms to judge"
    elif budget_ms is None:
        where = " and ".join(device.name for device in devices)
        facts["no budget"] = (
            f"the run's budget and prediction are of {where}, not of {target} here: give --budget-ms to judge"
        )
    return facts


def _build(command: "ExportCommand") -> "Build":
    from deploy.options import Build

    return Build(spec=_engine_spec(command), count=command.builds, timing_cache=command.timing_cache)


def _engine_spec(command: "ExportCommand") -> "EngineSpec | None":
    """Return the engine build options of the command line; None if all are defaults."""
    from latency.backends.engines import EngineSpec

    default = EngineSpec()
    spec = EngineSpec(
        workspace_mib=command.workspace_mib or 0,
        optimization_level=default.optimization_level
        if command.optimization_level is None
        else command.optimization_level,
        version_compatible=command.version_compatible,
        hardware_compatible=command.hardware_compatible,
        compute_capabilities=command.compute_capability or (),
    )
    return None if spec == default else spec


def _devices(finished_run: "FinishedRun") -> "list[OtherDevice]":
    """Return every device for which a run has a budget and a prediction, that of its --table first."""
    from search.architecture import OtherDevice

    architecture, unpruned = finished_run.architecture, finished_run.result.unpruned
    device, runtime, budget_us, predicted = (
        architecture.device,
        architecture.runtime,
        architecture.budget_us,
        architecture.predicted,
    )
    if device is None or runtime is None or budget_us is None or predicted is None:
        return []
    largest = (unpruned and unpruned.predicted) or predicted
    table = architecture.table_sha256
    first = OtherDevice(
        device=device, runtime=runtime, table_sha256=table, budget_us=budget_us, predicted=predicted, largest=largest
    )
    return [first, *architecture.also]


def _threads(device: "OtherDevice | None", command: "ExportCommand") -> int:
    """Return the threads of the CPU runtime: as requested, or else those of a device's table."""
    return command.threads or max(1, device.device.threads if device else 1)


def _is_here(known: "OtherDevice", target: str, threads: int) -> bool:
    """Return whether the local device and runtime of a target are those of a known device of a run."""
    if known.runtime.name != target:
        return False
    try:
        here = backends.get(target, threads=threads)
    except DeviceUnavailable:
        return True  # nothing is measured here, so nothing is compared with it
    return (here.device, here.runtime) == (known.device, known.runtime)


def verify(directory: Path) -> "list[Callable[[Callable[[str], None]], Verification]]":
    """Return one verification per bundle: of `directory`, or of its targets' bundles.

    Each is called with a callback for its steps.
    """
    import deploy
    from deploy import engine
    from deploy.bundle import MANIFEST

    each = [directory / target for target in engine.TARGETS if (directory / target / MANIFEST).is_file()]
    return [
        lambda on_step, bundle=bundle: deploy.verify(bundle, on_step=on_step)
        for bundle in (each if each and not (directory / MANIFEST).exists() else [directory])
    ]


def report(command: "ReportCommand", warn: Callable[[str], None]) -> "tuple[Path, tuple[ComparisonRow, ...]]":
    """Write the page of a run or a bundle; return its path and its main table."""
    from deploy.page import require_page
    from search.report import render

    page = command.out or Path(f"{command.source.resolve()}.html")
    require_page(page, force=command.force)
    return page, render(command.source, page, command.table and load_table(command.table, warn), force=command.force)
