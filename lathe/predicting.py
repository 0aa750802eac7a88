"""Implementation of `lathe predict`.

A network as blocks, its latency by each table, and the command that measures missing blocks.
"""

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from latency import BlockSpec, Latency, LatencyTable, Workload, outputs
from latency.errors import LatencyError, import_extra
from latency.estimate import Estimate, estimate
from lathe.spaces import named_space, require_no_batch, space_of, space_words
from lathe.tables import load_table, predicted

if TYPE_CHECKING:
    from lathe.cli import PredictCommand, SpaceCommand
    from search.space import Space

_BETWEEN = "what is between its layers, such as sums and pooling"


@dataclass(frozen=True, kw_only=True)
class NetworkBlocks:
    """A network as blocks."""

    name: str
    blocks: Sequence[BlockSpec]
    space: str
    """name of its space, as in table headers"""
    layers: Sequence[str] = ()
    """name of each block in the network; empty if they have no names"""
    others: str = ""
    """parts that no block covers, in words"""
    profile: str = ""
    """for a space: its name and flags, as `lathe profile` takes them"""
    batch: int = 1
    """images per inference"""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Result of `lathe predict`.

    Attributes:
        network: name of the network.
        others: parts that no block covers, in words; "" if there are none.
        estimates: one for each table.
        remarks: for each estimate, its caveats.
        commands: for each estimate, the command that measures the blocks its table lacks; "" if it lacks none.
        missing: the bundle written, with the blocks that the table lacks.
    """

    network: str
    others: str
    estimates: tuple[Estimate, ...]
    remarks: tuple[tuple[str, ...], ...]
    commands: tuple[str, ...]
    missing: Path | None = None


def predict(command: "PredictCommand", warn: Callable[[str], None]) -> Prediction:
    """Predict the latency of a network by each table.

    Raises:
        LatencyError: a table cannot be read; or --missing is given and there are several tables, or nothing is missing.
        SearchError, DeployError, ReparamError: the network cannot be read.
    """
    if command.missing is not None:
        outputs.require_file(command.missing, outputs.BLOCKS, flag="--missing", force=command.force)
        if len(command.table) > 1:
            raise LatencyError(f"--missing {command.missing} is what one table lacks: give one --table")
    tables = [load_table(path, warn) for path in command.table]
    import_extra("torch", "train")
    network = network_of(command)
    for table in tables:
        table.require(batch=network.batch)
    estimates = tuple(estimate(table, network.blocks, network.layers) for table in tables)
    if command.missing is not None:
        _write_missing(command.missing, network, tables[0], estimates[0], force=command.force)
    return Prediction(
        network=network.name,
        others=network.others,
        estimates=estimates,
        remarks=tuple(_remarks(network, result) for result in estimates),
        commands=tuple(
            _command(command, network, *pair) if pair[1].uncovered else ""
            for pair in zip(tables, estimates, strict=True)
        ),
        missing=command.missing,
    )


def network_of(command: "PredictCommand") -> NetworkBlocks:
    """Return the network that a command names.

    Raises:
        LatencyError: a flag belongs to another kind of source.
        SearchError, DeployError, ReparamError: the network cannot be read.
    """
    source, path = command.source, Path(command.source)
    if path.suffix == ".onnx" or path.is_dir():
        if given := command.words_with_classes():
            raise LatencyError(f"{given.strip()} is of a space or of FILE.py:FUNCTION: leave it out for {source}")
        return _network_of_onnx(command) if path.suffix == ".onnx" else _network_of_run(command)
    if command.shape:
        raise LatencyError(f"--shape {command.shape[0]} is of MODEL.onnx: leave it out for {source}")
    space = space_of(source, command, command.classes)
    others = "" if space.serial else _BETWEEN
    words = space_words(space, command)
    batch = command.batch or 1
    return NetworkBlocks(
        name=source, blocks=space.network(), space=space.name, others=others, profile=words, batch=batch
    )


def _network_of_run(command: "PredictCommand") -> NetworkBlocks:
    from deploy import bundle
    from search import finished

    if command.shape:
        raise LatencyError(
            f"--shape {command.shape[0]} is of MODEL.onnx: a run has the input shape of its architecture: leave it out"
        )
    directory = Path(command.source)
    if (directory / bundle.MANIFEST).is_file():
        raise LatencyError(f"{directory} is a shipped bundle: predict {directory / bundle.ONNX}")
    architecture = finished.load(directory).architecture
    space = architecture.origin()
    others = "" if space.serial else _BETWEEN
    batch = command.batch or architecture.batch
    return NetworkBlocks(
        name=command.source, blocks=architecture.network(), space=space.name, others=others, batch=batch
    )


def _network_of_onnx(command: "PredictCommand") -> NetworkBlocks:
    from deploy import onnxfile, shapes
    from search import onnx_layers

    if command.batch is not None:
        raise LatencyError(
            f"--batch {command.batch}: the batch of MODEL.onnx is in its shapes: give --shape, if they are dynamic"
        )
    layers = onnx_layers.read(onnxfile.read_model(command.source), shapes.parse_shapes(command.shape))
    others = ", ".join(f"{count} {name}" for name, count in layers.others.items())
    space = Path(command.source).name
    return NetworkBlocks(
        name=command.source, blocks=layers.blocks, layers=layers.names, space=space, others=others, batch=layers.batch
    )


def _remarks(network: NetworkBlocks, prediction: Estimate) -> tuple[str, ...]:
    remarks = [prediction.latency.origin] if prediction.latency and prediction.latency.origin else []
    if prediction.latency and network.space != prediction.space:
        remarks.append(
            f"the interval is how far networks of {prediction.space or 'another space'} are off, "
            "and this one may be off by more"
        )
    return tuple(remarks)


def _goes_on(table: LatencyTable) -> bool:
    """Return whether blocks of any space can be appended to a table.

    Its formats are current and its rows were measured directly.
    """
    from deploy.lowering import LOWERING_VERSION

    header = table.header
    return not table.old and not header.like and header.recording is None and header.lowering == LOWERING_VERSION


def _command(command: "PredictCommand", network: NetworkBlocks, table: LatencyTable, prediction: Estimate) -> str:
    """Return the command that measures the blocks a table lacks.

    As a bundle into the same table if it can grow, else into a new one.
    """
    stem = re.sub(r"\W+", "-", Path(network.name).name).strip("-")
    new = f"{stem}.latency.jsonl"
    if not _goes_on(table) and network.profile:
        return table.header.command(network.profile, new)
    missing = str(command.missing or f"{stem}.blocks.zip")
    measure = table.header.command(shlex.quote(missing), prediction.table if _goes_on(table) else new)
    if command.missing is not None:
        return measure
    shapes = "".join(f" --shape {shlex.quote(shape)}" for shape in command.shape)
    batch = "" if command.batch is None else f" --batch {command.batch}"
    predict = (
        f"lathe predict {shlex.quote(command.source)}{command.words_with_classes()}{batch}{shapes} --table "
        f"{shlex.quote(prediction.table)}"
    )
    return f"{predict} --missing {shlex.quote(missing)} && {measure}"


def _write_missing(
    path: Path, network: NetworkBlocks, table: LatencyTable, prediction: Estimate, *, force: bool
) -> None:
    """Write the blocks that a table lacks, or all blocks of the network if they go into a new table.

    Raises:
        LatencyError: the table lacks none.
    """
    from latency import blocks_zip
    from search.workloads import lower

    if not prediction.uncovered:
        raise LatencyError(f"--missing {path}: {prediction.table} covers every block of {network.name}: leave it out")
    goes_on, precision = _goes_on(table), table.header.precision
    works = [
        Workload.block(block, partial(lower, (block,), precision, network.batch), network.batch)
        for block in dict.fromkeys(network.blocks)
        if not goes_on or block.key in prediction.uncovered
    ]
    from deploy.lowering import LOWERING_VERSION

    space = table.header.space if goes_on else network.space
    blocks_zip.write(path, works, lowering=LOWERING_VERSION, space=space, precision=precision, force=force)


@dataclass(frozen=True, kw_only=True)
class CellFacts:
    """Result of `lathe space --arch` for one network; a multiply-accumulate counts as one MAC."""

    name: str
    arch: str
    depends_on_input: bool
    nominal_params: int
    """as counted by NAS-Bench-201: of every edge, used or not"""
    nominal_macs: int
    params: int
    """of the used edges, as trained"""
    macs: int
    deployed_params: int
    deployed_macs: int
    latency: Latency | None
    """as predicted by a table"""


def describe_cell(command: "SpaceCommand", text: str, warn: Callable[[str], None]) -> CellFacts:
    """Describe one network of a cell space, given its architecture string.

    Raises:
        SearchError: the space is not a cell space, or the string is not one of its architectures.
        LatencyError: the table is damaged, of another batch, or does not cover the network; or --batch has no table.
    """
    space = named_space(command)
    from search.errors import SearchError
    from search.spaces import Cells
    from search.spaces.cells import names

    if not isinstance(space, Cells):
        raise SearchError(
            f"{space.name} has no architecture strings: leave --arch out, or choose {' or '.join(names())}"
        )
    choice = space.parse(text)
    blocks, nominal = space.network(choice), space.nominal(choice)
    return CellFacts(
        name=space.name,
        arch=space.text(choice),
        depends_on_input=space.connected(choice),
        nominal_params=nominal.params,
        nominal_macs=nominal.macs,
        params=space.parameters(blocks, deployed=False),
        macs=space.macs(blocks, deployed=False),
        deployed_params=space.parameters(blocks),
        deployed_macs=space.macs(blocks),
        latency=_cell_latency(command, space, blocks, warn),
    )


def _cell_latency(
    command: "SpaceCommand", space: "Space", blocks: Sequence[BlockSpec], warn: Callable[[str], None]
) -> Latency | None:
    """Return the latency of a cell's network by the command's table; None if it has none."""
    if command.table is None:
        require_no_batch(command)
        return None
    table = load_table(command.table, warn)
    table.require(batch=command.batch or 1)
    return predicted(table, space, blocks, command)
