"""The commands `lathe search METHOD`: what all have, and the settings of each method as its own package has them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, Self

from tyro.conf import FlagConversionOff, OmitArgPrefixes, Suppress, UseAppendAction, arg, subcommand

from lathe.flags import Fraction, Milliseconds, Sizes
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
class Search(Sizes):
    """What every search is given."""

    space: Annotated[str, arg(aliases=["--module"])]
    """name of a space, such as repvgg-mini; or a network of one's own, FILE.py:FUNCTION, with --input"""
    out: Path
    """directory of the run; the same command again resumes"""
    table: Path | None = None
    """latency table of the device that the network is for; without one MACs are the cost, and the budget is a fraction of them"""
    also: UseAppendAction[tuple[str, ...]] = ()
    """a further device whose budget is to be met too, as TABLE:MILLISECONDS, such as other.latency.jsonl:1.2; once for each device"""
    data: str = "digits"
    """digits (scikit-learn's handwritten digits) or folder:PATH (one folder of images a class)"""
    task: str | None = None
    """in the place of --data a task of one's own, FILE.py:FUNCTION: a function that makes a search.Task, with samples, loss and metric"""
    budget_ms: Milliseconds | None = None
    """latency that the network may take, in milliseconds"""
    budget_fraction: Fraction | None = None
    """the same, as a fraction of the unpruned network's measured latency (without a table: of its MACs): 0.6 is 60 %"""
    backend: str | None = None
    """refuse a table measured with another backend"""
    precision: str | None = None
    """refuse a table of another precision: fp32 or fp16"""
    this_device: bool = False
    """refuse a table that was not measured on this machine: on another one, or replayed or simulated"""
    recipe: Literal["auto", "paper"] = "auto"
    """settings that are not given: auto (by the data; those below for up to 10,000 images) or paper (as the method's paper trains)"""
    baseline: Path | None = None
    """directory of a run: start from its trained unpruned network instead of training one"""
    tensorboard: bool = False
    """write TensorBoard events of every epoch, too, to OUT/tensorboard"""
    json: bool = False
    """print JSON"""
    given: Suppress[tuple[str, ...]] = field(default=())
    """names of the settings that the command line has: the others are the recipe's"""
    arguments: Suppress[tuple[str, ...]] = field(default=())
    """the command line"""

    settings: Settings

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from lathe import render, searching

        if self.settings.devices > 1 and not processes.is_worker():
            return processes.run_lathe(self.arguments, self.settings.devices)
        try:
            if processes.is_main():
                return render.search(searching.search(self, render.warn), out=self.out, as_json=self.json)
            for _ in searching.search(replace(self, tensorboard=False), lambda _: None):
                pass
        except processes.PeerLost:
            return processes.LOST  # what started this process says why
        return 0

    def goes_on(self) -> bool:
        """Whether the same command would go on with the run."""
        return (self.out / "run.json").is_file()

    def with_given(self, arguments: Sequence[str]) -> Self:
        """The same command, with what these words of the command line set."""
        flags = {word.partition("=")[0].removeprefix("--").replace("-", "_") for word in arguments if word.startswith("--")}
        given = tuple(name for name in self.settings.__struct_fields__ if name in flags)
        return replace(self, given=given, arguments=tuple(arguments))


@dataclass(frozen=True, kw_only=True)
class SearchPas(Search):
    """Pruning-as-Search: learn which channels to keep together with the weights, then fine-tune what is left."""

    settings: OmitArgPrefixes[FlagConversionOff[PasSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchUniform(Search):
    """Baseline: keep the same share of every group's channels, those of the largest filters."""

    settings: OmitArgPrefixes[FlagConversionOff[UniformSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchMagnitude(Search):
    """Baseline: remove channels of small filters, by one threshold for all groups."""

    settings: OmitArgPrefixes[FlagConversionOff[MagnitudeSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchSlimming(Search):
    """Baseline: network slimming, an L1 penalty on the scales of norms; then remove channels of small scales."""

    settings: OmitArgPrefixes[FlagConversionOff[SlimmingSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchTable(Search):
    """Keep the most important channels that fit the budget: a mixed-integer program over the table, with nothing learned."""

    settings: OmitArgPrefixes[FlagConversionOff[TableSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchTas(Search):
    """TAS: learn distributions over widths and depths with a network of sampled sizes, then train the found one with a teacher."""

    settings: OmitArgPrefixes[FlagConversionOff[TasSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchVpDarts(Search):
    """VP-DARTS: find the operations of a cell by validating a supernet without each of them, then train the cell from scratch."""

    settings: OmitArgPrefixes[FlagConversionOff[VpDartsSettings]]


@dataclass(frozen=True, kw_only=True)
class SearchPrunet(Search):
    """PRUNET: train a supernet of blocks that loses hidden widths, blocks and layers, then train what is left from scratch."""

    settings: OmitArgPrefixes[FlagConversionOff[PrunetSettings]]


Searches = (
    Annotated[SearchPas, subcommand("pas")]
    | Annotated[SearchUniform, subcommand("uniform")]
    | Annotated[SearchMagnitude, subcommand("magnitude")]
    | Annotated[SearchSlimming, subcommand("slimming")]
    | Annotated[SearchTable, subcommand("table")]
    | Annotated[SearchTas, subcommand("tas")]
    | Annotated[SearchVpDarts, subcommand("vp-darts")]
    | Annotated[SearchPrunet, subcommand("prunet")]
)
