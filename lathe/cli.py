"""The commands of `lathe`.

The dataclasses below define the command line: each field is a flag, and its docstring is the help.

Exit codes: 0, done and every verdict holds; 1, a verdict fails; 2, bad input or usage, reported in one line;
`latency.process` has those of faults and signals. Results go to stdout, progress and logs to stderr. No package of an
extra is imported before a command runs, so help always works.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from tyro.conf import Positional, UseAppendAction, subcommand

from latency import outputs, process
from latency.errors import LatencyError, one_line
from lathe import fleet, parsing
from lathe.flags import (
    Anchors,
    AnyNumber,
    Batch,
    BuildCount,
    BuildLevel,
    Count,
    Maybe,
    Mebibytes,
    Milliseconds,
    Relative,
    Seed,
    Shards,
    SizeFlagsWithClasses,
    Threads,
)
from lathe.searches import SearchCommand, SearchCommands
from lathe.sweeps import SweepCommand, SweepCommands


@dataclass(frozen=True)
class SpaceCommand(SizeFlagsWithClasses):
    """Show the size of a space: networks, blocks, and the parameters and MACs of its unpruned network.

    Or describe one of its cells.
    """

    space: Positional[Maybe[str]] = None
    """name of a space, such as repvgg-mini"""
    list: bool = False
    """print the name of every space"""
    arch: Maybe[str] = None
    """describe one cell, given its architecture string,
    such as |nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|none~1|none~2|"""
    table: Maybe[Path] = None
    """latency table that predicts the network of --arch"""
    batch: Maybe[Batch] = None
    """images per inference, as in the table of --table (default: 1)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import predicting, render, spaces

        if self.list:
            render.names(spaces.list_spaces(self), as_json=self.json)
        elif self.arch is not None:
            render.cell(predicting.describe_cell(self, self.arch, render.warn), as_json=self.json)
        else:
            render.space(spaces.describe_space(self), as_json=self.json)
        return 0


@dataclass(frozen=True)
class BundleCommand(SizeFlagsWithClasses):
    """Write every block of a space into one file, to measure on machines without torch.

    `python -m latency profile FILE`.
    """

    space: Positional[str]
    """name of a space, such as repvgg-mini"""
    out: Path
    """bundle to write: NAME.blocks.zip"""
    precision: Literal["fp32", "fp16"] = "fp32"
    """precision of weights and arithmetic: fp32 for a CPU, fp16 for a GPU"""
    batch: Batch = 1
    """images per inference"""
    networks: Maybe[Count] = None
    """random whole networks to include with the blocks (default: 48)"""
    seed: Maybe[Seed] = None
    """seed of those networks (default: 0)"""
    force: bool = False
    """replace a file of --out that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import profiling, render

        render.block_bundle(*profiling.bundle(self), as_json=self.json)
        return 0


@dataclass(frozen=True)
class ProfileCommand(SizeFlagsWithClasses):
    """Measure every block of a space on this machine and write a latency table; rerun the same command to resume."""

    space: Positional[str]
    """name of a space, such as repvgg-mini; your own network, FILE.py:FUNCTION;
    or a bundle of blocks: NAME.blocks.zip"""
    out: Path
    """table to write or resume: NAME.latency.jsonl"""
    backend: str = "onnxruntime"
    """runtime of the blocks: onnxruntime (or onnxruntime:cuda and similar), tensorrt, tensorrt-rtx,
    replay:TABLE or simulated:seed=0"""
    protocol: str = "default"
    """how long and how precisely to measure: default, fast, trtexec-10 or trtexec-11"""
    threads: Threads = 1
    """threads of the CPU runtime; part of the table's fingerprint"""
    batch: Maybe[Batch] = None
    """images per inference; part of the table's fingerprint (default: 1, or the bundle's)"""
    coverage: Literal["full", "adaptive"] = "full"
    """full: every block; adaptive: at most a third (more if a small space needs it),
    where interpolation of the others is least certain"""
    coverage_error: Relative = 0.02
    """adaptive: stop when the mean relative error of interpolation, including at held-out blocks, is at most this"""
    like: Maybe[tuple[Path, ...]] = None
    """tables of other devices, OLD.latency.jsonl:
    measure a few blocks, the anchors, and transfer the others from these tables"""
    anchors: Maybe[Anchors] = None
    """with --like: number of blocks to measure; one in five is held out to assess the transfer (default: 60)"""
    drift_limit: Relative = 0.03
    """relative drift of the device above which the rows around it are measured again"""
    timing_cache: Maybe[Path] = None
    """tensorrt: timing cache of an earlier build, with its kernel timings;
    its hash is part of the table's fingerprint"""
    save_timing_cache: Maybe[Path] = None
    """tensorrt: file in which to save the timing cache after the last measurement, for later tables"""
    networks: Maybe[Count] = None
    """random whole networks to measure besides the blocks: they show how well sums of blocks predict
    (default: 48, or the bundle's)"""
    seed: Maybe[Seed] = None
    """seed of those networks (default: 0, or the bundle's)"""
    shard: str = "1/1"
    """measure one of several parts, on identical devices: 1/4 to 4/4 on four"""
    engine: Literal["local", "ray"] = "local"
    """where to measure: on this machine, or on an existing Ray cluster whose nodes share the directory of --out"""
    address: Maybe[str] = None
    """address of the Ray cluster, such as 10.0.0.1:6379 (default: the cluster that this machine belongs to)"""
    shards: Maybe[Shards] = None
    """on a Ray cluster: number of parts to measure, one task each; they are merged into --out"""
    resources: AnyNumber[str] = ()
    """on a Ray cluster: resources that a part needs, such as gpu_type:h100, as named by `ray start --resources`;
    or GPU=2, CPU=8"""
    force: bool = False
    """replace a file of --save-timing-cache that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import profiling, render, table_views, tables

        render.profile(profiling.profile(self), out=self.out)
        table_views.table(tables.load_table(self.out, render.warn), self.out, as_json=self.json)
        return 0

    def goes_on(self) -> bool:
        """Return whether the same command would resume the measurement."""
        return outputs.begun(self.out) or fleet.folder(self.out).is_dir()


@dataclass(frozen=True)
class TableShow:
    """Show a latency table: where it was measured, the state of its rows, and how well it predicts whole networks.

    Or its rows.
    """

    table: Positional[Path]
    """a *.latency.jsonl file"""
    rows: bool = False
    """show every row instead, by family, in widths and microseconds"""
    family: Maybe[str] = None
    """show only rows of families whose name contains this, such as "conv 3x3" or "whole networks"; implies --rows"""
    csv: bool = False
    """print the rows as CSV, in one sheet; implies --rows"""
    markdown: bool = False
    """print the rows as Markdown; implies --rows"""
    plot: Maybe[Path] = None
    """draw it, too: OUT.png or OUT.svg"""
    force: bool = False
    """replace a file of --plot that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, table_views, tables

        if self.rows or self.family is not None or self.csv or self.markdown:
            families = tables.list_rows(self, render.warn)
            table_views.rows(families, "csv" if self.csv else "markdown" if self.markdown else "text")
        else:
            table_views.table(tables.show_table(self, render.warn), self.table, as_json=self.json)
        return 0


@dataclass(frozen=True)
class TableCheck(SizeFlagsWithClasses):
    """Report what is wrong or doubtful in a latency table, and what to do.

    Exit code 1 if rows are missing or failed.
    """

    table: Positional[Path]
    """a *.latency.jsonl file"""
    space: Maybe[str] = None
    """name of the space that it should cover (default: the one named in the table)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, table_views, tables

        return table_views.findings(tables.check_table(self, render.warn), as_json=self.json)


@dataclass(frozen=True)
class TableDiff:
    """Compare latency tables with the first, family by family and block by block.

    SAME, FASTER, SLOWER or UNSURE, with intervals.

    Also show how the tables were made differently, such as protocol, threads or precision. Exit code 0 if all have the
    same blocks and all are SAME; 1 if a block or the mean is not, or a block is in only one table; 2 for bad input.
    """

    tables: Positional[AnyNumber[Path]]
    """two or more *.latency.jsonl files: each is compared with the first"""
    plot: Maybe[Path] = None
    """draw it, too: OUT.png or OUT.svg"""
    force: bool = False
    """replace a file of --plot that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, table_views, tables

        return table_views.diff(tables.diff_tables(self, render.warn), as_json=self.json)


@dataclass(frozen=True)
class TableMerge:
    """Merge latency tables of identical devices, such as shards, into one."""

    tables: Positional[AnyNumber[Path]]
    """*.latency.jsonl files"""
    out: Path
    """table to write; it must not exist"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, table_views, tables

        table_views.table(tables.merge_tables(self.tables, self.out, render.warn), self.out, as_json=self.json)
        return 0


@dataclass(frozen=True)
class PredictCommand(SizeFlagsWithClasses):
    """Predict the latency of a network from latency tables, block by block.

    Exit code 1 if a table does not cover it.
    """

    source: Positional[str]
    """FILE.py:FUNCTION, a function that returns a network; MODEL.onnx; directory of a run;
    or name of a space, for its unpruned network"""
    table: tuple[Path, ...]
    """*.latency.jsonl files: each predicts the network"""
    batch: Maybe[Batch] = None
    """for a space, a run or FILE.py:FUNCTION: images per inference, as in the tables (default: 1, or the run's)"""
    shape: UseAppendAction[tuple[str, ...]] = ()
    """for MODEL.onnx: shape of an input with a dynamic shape, such as input=1x3x224x224; once for each input"""
    missing: Maybe[Path] = None
    """write the blocks that the table does not cover into this bundle, NAME.blocks.zip,
    for `lathe profile` to measure"""
    force: bool = False
    """replace a file of --missing that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import predicting, render, table_views

        return table_views.prediction(predicting.predict(self, render.warn), as_json=self.json)


@dataclass(frozen=True)
class ExportCommand:
    """Turn a search run, an ONNX file or your own network into a directory ready to ship.

    Fused, squeezed, checked and timed.
    """

    source: Positional[Path]
    """directory of a run, MODEL.onnx, or FILE.py:FUNCTION, a function that returns a network"""
    out: Path
    """bundle to write"""
    target: tuple[str, ...] = ("onnxruntime",)
    """onnxruntime, tensorrt or tensorrt-rtx; given several, --out gets a bundle for each, in a directory of its name"""
    layout: Literal["bundle", "triton"] = "bundle"
    """triton: besides the bundle OUT, also write OUT.triton, a model repository for NVIDIA's Triton Inference Server"""
    budget_ms: Maybe[Milliseconds] = None
    """latency budget of the network, in milliseconds (default: the run's)"""
    protocol: str = "default"
    """how long and how precisely to measure: default or fast"""
    threads: Maybe[Threads] = None
    """threads of the CPU runtime (default: the table's, or 1)"""
    samples: UseAppendAction[tuple[str, ...]] = ()
    """for MODEL.onnx or FILE.py:FUNCTION: preprocessed inputs on which FP16 is certified and validated:
    SAMPLES.npy of shape [samples, ...]; for several inputs, SAMPLES.npz with an array for each name,
    or NAME=SAMPLES.npy once for each; or a folder of images, or of folders of images, with --mean and --std
    (default: drawn at random, which proves little)"""
    mean: Maybe[tuple[float, float, float]] = None
    """for a folder of images: mean to subtract from red, green and blue, which range from 0 to 1,
    such as 0.485 0.456 0.406"""
    std: Maybe[tuple[float, float, float]] = None
    """for a folder of images: divisors of red, green and blue after the mean is subtracted,
    such as 0.229 0.224 0.225"""
    labels: Maybe[str] = None
    """for samples: LABELS.npy, a class index per sample, or with --metric its target;
    or `folders`: the index of each image's folder"""
    metric: Maybe[str] = None
    """for samples with --labels: FILE.py:FUNCTION, a function of outputs and targets that returns a number per sample;
    the mean is reported"""
    precision: Maybe[Literal["fp32", "fp16", "bf16"]] = None
    """precision of the shipped arithmetic; fp16 and bf16 with TensorRT
    (default: fp32 with onnxruntime, fp16 with TensorRT)"""
    io: Literal["fp32", "fp16"] = "fp32"
    """precision of floating-point inputs and outputs; fp16 needs --precision fp16"""
    explain: bool = False
    """name the layer that FP16 breaks: the first tensor that differs from FP32 by more than the limit, on the samples;
    needs no GPU"""
    shape: UseAppendAction[tuple[str, ...]] = ()
    """for MODEL.onnx: shape of an input with a dynamic shape, such as input=1x3x224x224;
    or its smallest, usual and largest shape, between which it stays dynamic,
    such as input=1x3x224x224:8x3x224x224:32x3x224x224; once for each input"""
    batch: Maybe[Batch] = None
    """for a run or FILE.py:FUNCTION: images per inference (default: 1, or that of the run's tables)"""
    weights: Maybe[Path] = None
    """for FILE.py:FUNCTION: WEIGHTS.safetensors, its trained parameters and buffers
    (default: as the function returns them)"""
    input: Maybe[str] = None
    """for FILE.py:FUNCTION: channels, height and width of an image, such as 3x224x224"""
    builds: BuildCount = 1
    """for an engine: number of builds; engines that differ are timed in turns, and the fastest ships"""
    workspace_mib: Maybe[Mebibytes] = None
    """for an engine: maximum scratch memory in MiB (default: the builder's own)"""
    optimization_level: Maybe[BuildLevel] = None
    """for an engine: 0 to 5, how long the builder may search for faster code (default: 3)"""
    timing_cache: Maybe[Path] = None
    """for an engine, tensorrt only: earlier measurements of the builder, model.timing_cache of an earlier bundle"""
    version_compatible: bool = False
    """for an engine, tensorrt only: later versions of the runtime can load it"""
    hardware_compatible: bool = False
    """for an engine, tensorrt only: every GPU from Ampere on can load it, at some cost in speed"""
    compute_capability: Maybe[tuple[str, ...]] = None
    """for an engine, tensorrt-rtx only: compute capabilities of its GPUs, such as 8.9 12.0 (default: 8.0 and later)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import exporting, render

        return render.bundles(
            [partial(exporting.export, command) for command in exporting.by_target(self)], as_json=self.json
        )


@dataclass(frozen=True)
class VerifyCommand:
    """Verify a bundle: every hash, and all outputs and speeds that this machine can check."""

    bundle: Positional[Path]
    """directory of a bundle, or of the bundles of several targets"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import exporting, render

        return render.verifications(exporting.verify(self.bundle), as_json=self.json)


@dataclass(frozen=True)
class ReportCommand:
    """Write a self-contained HTML page for a run, a bundle or a sweep, and print its main table."""

    source: Positional[Path]
    """directory of a run, a bundle or a sweep"""
    out: Maybe[Path] = None
    """page to write (default: SOURCE.html, next to the directory)"""
    table: Maybe[Path] = None
    """latency table that the search used, to show it too"""
    force: bool = False
    """replace a file of --out that Lathe did not write"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import exporting, render

        page, rows = exporting.report(self, render.warn)
        render.report(page, rows, as_json=self.json)
        return 0


@dataclass(frozen=True)
class PaperCommand:
    """Print the reproducible numbers of a paper next to ours; exit code 1 if one that should be equal is not.

    `lathe paper latencies` prints published latencies of well-known networks, with protocol, device and source, next to
    those of your tables: if all are off by the same factor, check the clocks of the device.
    """

    paper: Positional[str]
    """repvgg, pas, tas, vp-darts, prunet or gpunet; or latencies"""
    table: AnyNumber[Path] = ()
    """for latencies: *.latency.jsonl files with such networks, as measured by `lathe profile gpunet-1 --out TABLE`"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, tables
        from search import papers

        if self.paper == "latencies":
            render.latencies(*tables.published_latencies(self, render.warn), as_json=self.json)
            return 0
        if self.table:
            raise LatencyError(f"--table {self.table[0]} is of `lathe paper latencies`: leave it out for {self.paper}")
        return render.paper(papers.rows(self.paper), as_json=self.json)


TableCommand = (
    Annotated[TableShow, subcommand("show")]
    | Annotated[TableCheck, subcommand("check")]
    | Annotated[TableDiff, subcommand("diff")]
    | Annotated[TableMerge, subcommand("merge")]
)
SEARCH = """Search a network under a latency budget.

Which method? For the channels of a network `slimming`: at equal latency it
had the highest accuracy in our benchmark, ahead of `magnitude`, `uniform` and
`pas`. For the operations of a cell `vp-darts`, for blocks and layers `prunet`,
for widths and depths together `tas`. The README has the figures.
"""
Command = (
    Annotated[SpaceCommand, subcommand("space")]
    | Annotated[BundleCommand, subcommand("bundle")]
    | Annotated[ProfileCommand, subcommand("profile")]
    | Annotated[TableCommand, subcommand("table", description="Show, check, compare or join latency tables.")]
    | Annotated[SearchCommands, subcommand("search", description=SEARCH)]
    | Annotated[
        SweepCommands,
        subcommand("sweep", description="Search at several budgets, seeds and settings; name the run to export."),
    ]
    | Annotated[PredictCommand, subcommand("predict")]
    | Annotated[ExportCommand, subcommand("export")]
    | Annotated[VerifyCommand, subcommand("verify")]
    | Annotated[ReportCommand, subcommand("report")]
    | Annotated[PaperCommand, subcommand("paper")]
)


def parse(arguments: Sequence[str]) -> Command:
    """Read the command line.

    Raises:
        UsageError: tyro rejects it; the message is tyro's box as one line.
        LatencyError: a word is empty or not UTF-8, a flag is given twice, or a number is out of range.
    """
    command: Any = parsing.parse(
        Command,
        arguments,
        prog="lathe",
        description="Measure a device, search a network that fits its latency budget, ship an engine that has been "
        "checked. `lathe --version` prints the version.",
    )
    return cast("Command", command.with_given(arguments) if isinstance(command, SearchCommand) else command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line; exit by `SystemExit`."""
    # Torch threads that spin while they wait slow each other down on a busy machine. The variable is read when torch is
    # loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    command: Command | None = None

    def work() -> int:
        nonlocal command
        words = sys.argv[1:] if arguments is None else arguments
        if list(words) == ["--version"]:
            from lathe import render

            return render.version()
        command = parse(words)
        return command.run()

    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        sys.exit(
            process.run(
                "lathe",
                work,
                user_errors=user_errors,
                goes_on=lambda: (
                    isinstance(command, ProfileCommand | SearchCommand | SweepCommand) and command.goes_on()
                ),
            )
        )


def _show_warning(message: Warning | str, *_: object) -> None:
    """Show a warning of any package in one line, without its location in the code."""
    from lathe import render

    render.warn(one_line(str(message)))


def user_errors() -> tuple[type[Exception], ...]:
    """Return the errors that the user can fix: those defined by the packages.

    A package that was never imported raised nothing, so this imports nothing.
    """
    named = [("reparam.errors", "ReparamError"), ("deploy.errors", "DeployError"), ("search.errors", "SearchError")]
    return (
        parsing.UsageError,
        *(getattr(sys.modules[module], name) for module, name in named if module in sys.modules),
    )
