"""The commands `lathe search METHOD`.

Their common flags, and the settings of each method as its own package defines them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from tyro.conf import FlagConversionOff, OmitArgPrefixes, Suppress, UseAppendAction, arg, subcommand

from lathe.flags import Fraction, Maybe, Milliseconds, SizeFlags
from search import processes
from search.methods.settings import (
    MagnitudeSettings,
    PasSettings,
    PrunetSettings,
    Settings,
    SlimmingSettings,
    TableSettings,
    TasSettings,
    UniformSettings,
    VpDartsSettings,
)


@dataclass(frozen=True, kw_only=True)
class SearchCommand(SizeFlags):
    """Flags of every search."""

    space: Annotated[str, arg(aliases=["--module"])]
    """name of a space, such as repvgg-mini; or your own network, FILE.py:FUNCTION, with --input"""
    out: Path
    """directory of the run; rerun the same command to resume"""
    table: Maybe[Path] = None
    """latency table of the network's target device;
    without one, MACs are the cost, and the budget is a fraction of them"""
    also: UseAppendAction[tuple[str, ...]] = ()
    """another device and its budget, also to be met, as TABLE:MILLISECONDS, such as other.latency.jsonl:1.2;
    once for each device"""
    data: str = "digits"
    """digits (scikit-learn's handwritten digits) or folder:PATH (one folder of images per class)"""
    task: Maybe[str] = None
    """instead of --data, your own task, FILE.py:FUNCTION:
    a function that returns a search.Task, with samples, loss and metric"""
    budget_ms: Maybe[Milliseconds] = None
    """latency budget of the network, in milliseconds"""
    budget_fraction: Maybe[Fraction] = None
    """the same, as a fraction of the unpruned network's measured latency (without a table: of its MACs): 0.6 is 60 %"""
    backend: Maybe[str] = None
    """reject a table measured with another backend"""
    precision: Maybe[str] = None
    """reject a table of another precision: fp32 or fp16"""
    this_device: bool = False
    """reject a table that was not measured on this machine: one from another machine, replayed or simulated"""
    recipe: Literal["auto", "paper"] = "auto"
    """defaults of settings that are not given: auto
    (by the data; those below for up to 10,000 images) or paper (as in the method's paper)"""
    baseline: Maybe[Path] = None
    """directory of a run: start from its trained unpruned network instead of training one"""
    tensorboard: bool = False
    """also write TensorBoard events of every epoch, to OUT/tensorboard"""
    json: bool = False
    """print JSON"""
    given: Suppress[tuple[str, ...]] = field(default=())
    """names of the settings given on the command line; the recipe sets the others"""
    arguments: Suppress[tuple[str, ...]] = field(default=())
    """the command line"""

    settings: Settings

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, searching

        if self.settings.devices > 1 and not processes.is_worker():
            return processes.run_lathe(self.arguments, self.settings.devices)
        try:
            if processes.is_main():
                return render.search(searching.search(self, render.warn), out=self.out, as_json=self.json)
            for _ in searching.search(replace(self, tensorboard=False), lambda _: None):
                pass
        except processes.PeerLost:
            return processes.LOST  # the process that started this one reports why
        return 0

    def goes_on(self) -> bool:
        """Return whether the same command would resume the run."""
        return (self.out / "run.json").is_file()

    def with_given(self, arguments: Sequence[str]) -> Self:
        """Return the command with the settings that these words of the command line give."""
        flags = {
            word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")
        }
        given = tuple(name for name in self.settings.__struct_fields__ if name in flags)
        return replace(self, given=given, arguments=tuple(arguments))


@dataclass(frozen=True, kw_only=True)
class SearchPas(SearchCommand):
    """Pruning-as-Search: learn which channels to keep together with the weights, then fine-tune the pruned network."""

    settings: OmitArgPrefixes[FlagConversionOff[PasSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchUniform(SearchCommand):
    """Baseline: keep the same share of channels in every group, those with the largest filters."""

    settings: OmitArgPrefixes[FlagConversionOff[UniformSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchMagnitude(SearchCommand):
    """Baseline: remove channels with small filters, by one threshold for all groups."""

    settings: OmitArgPrefixes[FlagConversionOff[MagnitudeSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchSlimming(SearchCommand):
    """Baseline: network slimming, an L1 penalty on the scales of norms; then remove channels with small scales."""

    settings: OmitArgPrefixes[FlagConversionOff[SlimmingSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchTable(SearchCommand):
    """Keep the most important channels that fit the budget.

    A mixed-integer program over the table, without learning.
    """

    settings: OmitArgPrefixes[FlagConversionOff[TableSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchTas(SearchCommand):
    """TAS: learn distributions over widths and depths, then train the selected network with a teacher."""

    settings: OmitArgPrefixes[FlagConversionOff[TasSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchVpDarts(SearchCommand):
    """VP-DARTS: validate a supernet without each operation, keep the best, then train the cell from scratch."""

    settings: OmitArgPrefixes[FlagConversionOff[VpDartsSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchPrunet(SearchCommand):
    """PRUNET: prune widths, blocks and layers of a supernet in training, then train the rest from scratch."""

    settings: OmitArgPrefixes[FlagConversionOff[PrunetSettings]]


SearchCommands = (
    Annotated[SearchPas, subcommand("pas")]
    | Annotated[SearchUniform, subcommand("uniform")]
    | Annotated[SearchMagnitude, subcommand("magnitude")]
    | Annotated[SearchSlimming, subcommand("slimming")]
    | Annotated[SearchTable, subcommand("table")]
    | Annotated[SearchTas, subcommand("tas")]
    | Annotated[SearchVpDarts, subcommand("vp-darts")]
    | Annotated[SearchPrunet, subcommand("prunet")]
)
