"""The commands `lathe sweep METHOD` and `lathe sweep best`."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Union, get_args, get_type_hints

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from lathe import parsing
from lathe.flags import Fraction, Gpus, Jobs, Maybe, Milliseconds, Seeds, SizeFlags
from lathe.searches import SearchCommands
from search.methods.settings import Settings


@dataclass(frozen=True, kw_only=True)
class SweepCommand(SizeFlags):
    """searches at several budgets, seeds and settings, one run each.

    The resulting networks are measured at the end, one at a time.
    """

    method: ClassVar[type[Settings]]

    space: Annotated[str, arg(aliases=["--module"])]
    """name of a space, such as repvgg-mini; or your own network, FILE.py:FUNCTION, with --input"""
    out: Path
    """directory of the sweep; rerun the same command to resume"""
    table: Maybe[Path] = None
    """latency table of the networks' target device;
    without one, MACs are the cost, and budgets are fractions of them"""
    also: UseAppendAction[tuple[str, ...]] = ()
    """another device and its budget, which all networks must also meet, as TABLE:MILLISECONDS,
    such as other.latency.jsonl:1.2"""
    data: str = "digits"
    """digits (scikit-learn's handwritten digits) or folder:PATH (one folder of images per class)"""
    task: Maybe[str] = None
    """instead of --data, your own task, FILE.py:FUNCTION, see `lathe search METHOD --help`"""
    budget_ms: Maybe[tuple[Milliseconds, ...]] = None
    """latency budgets of the networks, in milliseconds, such as 0.5 0.7 1.0"""
    budget_fraction: Maybe[tuple[Fraction, ...]] = None
    """the same, as fractions of the unpruned network's latency (without a table: of its MACs)"""
    seeds: Seeds = 1
    """number of seeds, starting at 0"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """a setting of the method and its values to try, such as beta=0.1,0.3; once for each setting;
    see `lathe search METHOD --help`"""
    recipe: Literal["auto", "paper"] = "auto"
    """defaults of settings that are not given: auto (by the data) or paper (as in the method's paper)"""
    jobs: Jobs = 1
    """number of concurrent searches; they share the processor's cores"""
    engine: Literal["local", "ray"] = "local"
    """where searches run: on this machine, or on an existing Ray cluster whose nodes share the working directory,
    OUT and the data"""
    address: Maybe[str] = None
    """address of the Ray cluster, such as 10.0.0.1:6379 (default: the cluster that this machine belongs to)"""
    gpus_per_run: Gpus = 0.0
    """GPUs per search on the Ray cluster; 0.5 lets two searches share one"""
    no_measure: bool = False
    """only search; otherwise every resulting network is exported to OUT/bundles
    and measured on this machine after all searches"""
    target: Maybe[str] = None
    """onnxruntime, tensorrt or tensorrt-rtx (default: the one that the table was measured with)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, searching

        return render.sweep(searching.sweep(self), out=self.out, as_json=self.json)

    def require_member(self, words: Sequence[str]) -> None:
        """Require that `lathe search WORDS` is a sound command.

        Raises:
            UsageError, LatencyError: it is not; see `parsing.parse`.
        """
        parsing.parse(SearchCommands, words, prog="lathe search").with_given(words)

    def goes_on(self) -> bool:
        """Return whether the same command would resume the sweep."""
        return (self.out / "sweep.json").is_file()

    def common(self) -> Iterator[str]:
        """Yield the words of `lathe search METHOD` that all runs share."""
        yield from ("--space", self.space, "--data", self.data, "--recipe", self.recipe)
        for field in ("table", "task", *(field.name for field in dataclasses.fields(SizeFlags))):
            if (value := getattr(self, field)) is not None:
                yield from (f"--{field}", str(value))
        for device in self.also:
            yield from ("--also", device)


@dataclass(frozen=True)
class SweepBest:
    """Name the run of a sweep to export: the most accurate whose latency interval has its upper end within a budget."""

    sweep: Positional[Path]
    """directory of a sweep"""
    budget_ms: Milliseconds
    """latency budget of the network, in milliseconds"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; return the exit code."""
        from lathe import render, searching

        render.best(searching.sweep_best(self), self.sweep, as_json=self.json)
        return 0


_METHODS: tuple[type[Settings], ...] = tuple(
    get_type_hints(get_args(kind)[0])["settings"] for kind in get_args(SearchCommands)
)
"""Methods of `lathe search`."""


def _of(method: type[Settings]) -> type[SweepCommand]:
    fields = {"method": method, "__doc__": f"{method.name}: {SweepCommand.__doc__}"}
    return dataclass(frozen=True, kw_only=True)(type(f"Sweep{method.__name__}", (SweepCommand,), fields))


SweepCommands = Union[
    (
        Annotated[SweepBest, subcommand("best")],
        *(Annotated[_of(method), subcommand(method.name)] for method in _METHODS),
    )
]
