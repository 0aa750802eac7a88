"""The commands `lathe sweep METHOD` and `lathe sweep best`."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Union, get_args, get_type_hints

from tyro.conf import Positional, UseAppendAction, arg, subcommand

from lathe.flags import Fraction, Gpus, Jobs, Milliseconds, Seeds, Sizes
from lathe.searches import Searches
from search.methods.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Sweep(Sizes):
    """searches at several budgets, seeds and settings, each a run; what they find is measured at the end, one at a time."""

    method: ClassVar[type[Settings]]

    space: Annotated[str, arg(aliases=["--module"])]
    """name of a space, such as repvgg-mini; or a network of one's own, FILE.py:FUNCTION, with --input"""
    out: Path
    """directory of the sweep; the same command again resumes"""
    table: Path | None = None
    """latency table of the device that the networks are for; without one MACs are the cost, and budgets are fractions of them"""
    also: UseAppendAction[tuple[str, ...]] = ()
    """a further device whose budget all networks are to meet too, as TABLE:MILLISECONDS, such as other.latency.jsonl:1.2"""
    data: str = "digits"
    """digits (scikit-learn's handwritten digits) or folder:PATH (one folder of images a class)"""
    task: str | None = None
    """in the place of --data a task of one's own, FILE.py:FUNCTION, see `lathe search METHOD --help`"""
    budget_ms: tuple[Milliseconds, ...] | None = None
    """latencies that the networks may take, in milliseconds, such as 0.5 0.7 1.0"""
    budget_fraction: tuple[Fraction, ...] | None = None
    """the same, as fractions of the unpruned network's latency (without a table: of its MACs)"""
    seeds: Seeds = 1
    """number of seeds, from 0"""
    set: UseAppendAction[tuple[str, ...]] = ()
    """a setting of the method and the values to try, such as beta=0.1,0.3; once for each setting; see `lathe search METHOD --help`"""
    recipe: Literal["auto", "paper"] = "auto"
    """settings that are not given: auto (by the data) or paper (as the method's paper trains)"""
    jobs: Jobs = 1
    """searches at once; they share the processor's cores"""
    engine: Literal["local", "ray"] = "local"
    """where the searches run: on this machine, or on an existing Ray cluster, whose nodes share the working directory, OUT and the data"""
    address: str | None = None
    """of the Ray cluster, such as 10.0.0.1:6379 (default: the one that this machine is a node of)"""
    gpus_per_run: Gpus = 0.0
    """GPUs of each search on the Ray cluster; 0.5 lets two searches share one"""
    no_measure: bool = False
    """only search; otherwise every found network is exported to OUT/bundles and measured on this machine when all searches are over"""
    target: str | None = None
    """onnxruntime, tensorrt or tensorrt-rtx (default: what the table was measured with)"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from lathe import render, searching

        return render.sweep(searching.sweep(self), out=self.out, as_json=self.json)

    def goes_on(self) -> bool:
        """Whether the same command would go on with the sweep."""
        return (self.out / "sweep.json").is_file()

    def common(self) -> Iterator[str]:
        """What all runs are given on the command line of `lathe search METHOD`."""
        yield from ("--space", self.space, "--data", self.data, "--recipe", self.recipe)
        for field in ("table", "task", *(field.name for field in dataclasses.fields(Sizes))):
            if (value := getattr(self, field)) is not None:
                yield from (f"--{field}", str(value))
        for device in self.also:
            yield from ("--also", device)


@dataclass(frozen=True)
class SweepBest:
    """Name the run of a sweep to export: the most accurate one whose latency is within a budget by the upper end of its interval."""

    sweep: Positional[Path]
    """directory of a sweep"""
    budget_ms: Milliseconds
    """latency that the network may take, in milliseconds"""
    json: bool = False
    """print JSON"""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from lathe import render, searching

        render.best(searching.sweep_best(self), self.sweep, as_json=self.json)
        return 0


_METHODS: tuple[type[Settings], ...] = tuple(get_type_hints(get_args(kind)[0])["settings"] for kind in get_args(Searches))
"""Those that `lathe search` has."""


def _of(method: type[Settings]) -> type[Sweep]:
    fields = {"method": method, "__doc__": f"{method.name}: {Sweep.__doc__}"}
    return dataclass(frozen=True, kw_only=True)(type(f"Sweep{method.__name__}", (Sweep,), fields))


Sweeps = Union[(Annotated[SweepBest, subcommand("best")], *(Annotated[_of(method), subcommand(method.name)] for method in _METHODS))]
