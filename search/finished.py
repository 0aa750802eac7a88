"""A finished run, loaded: what it was asked for, what came out, and its trained networks. Runs of every version are read."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search import record
from search.architecture import Architecture, load_architecture
from search.errors import SearchError
from search.record import EpochDone, Result, Run

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """The directory of a run that is complete."""

    directory: Path
    run: Run
    result: Result
    architecture: Architecture
    history: tuple[EpochDone, ...]

    def network(self) -> "nn.Module":
        """What ships, trained, with a mask behind every group that lost channels.

        Raises:
            SearchError: the weights are missing, damaged, or of another network.
        """
        from search.network import load_weights

        network = self.architecture.build()
        load_weights(network, self.directory / record.WEIGHTS, {"architecture_sha256": self.result.architecture_sha256})
        return network

    def unpruned(self) -> "nn.Module | None":
        """What the search started from, trained; None where the method trains no such network.

        Raises:
            SearchError: as `network`.
        """
        from search.network import load_weights

        if self.result.unpruned is None:
            return None
        network = self.architecture.unpruned()
        load_weights(network, self.directory / record.BASELINE, {})
        return network


def load(directory: str | Path) -> FinishedRun:
    """Read the directory of a finished run.

    Raises:
        SearchError: it is not the directory of a run, the run is not finished, or a file is damaged; names the file.
    """
    directory = Path(directory)
    run = record.read_run(directory)
    result = record.read_result(directory, run)
    architecture = load_architecture(directory / record.ARCHITECTURE)
    history = record.read_history(directory, run)
    require_same_space(directory, architecture, result, history)
    return FinishedRun(directory=directory, run=run, result=result, architecture=architecture, history=history)


def require_same_space(directory: Path, architecture: Architecture, result: Result | None, history: Iterable[EpochDone]) -> None:
    """Check that the networks which a run's files name are of its space; those of an epoch by their names alone: they need not ship.

    Raises:
        SearchError: one is not; names the file.
    """
    if not architecture.blocks:  # the space is of a module that no file holds
        return
    space = architecture.origin()
    for choice in dict.fromkeys(end.choice for end in (result and result.shipped, result and result.unpruned) if end):
        try:
            space.network(choice)
        except SearchError as error:
            raise SearchError(f"{directory / record.RESULT} was changed after the search: {error}") from error
    largest = space.largest()
    for choice in dict.fromkeys(epoch.choice for epoch in history):
        places = ((choice.options, largest.options), (choice.depths, largest.depths), (choice.widths, largest.widths | largest.options))
        if strange := sorted(name for found, known in places for name in found.keys() - known.keys()):
            raise SearchError(
                f"{directory / record.HISTORY} was changed after the search: {space.name} has nothing to choose at {strange[0]}"
            )
