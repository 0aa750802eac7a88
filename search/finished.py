"""Load a finished run of any version: its settings, its result and its trained networks."""

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
    """The content of a finished run's directory."""

    directory: Path
    run: Run
    result: Result
    architecture: Architecture
    history: tuple[EpochDone, ...]

    def network(self) -> "nn.Module":
        """Return the trained network that ships, with a mask after every group that lost channels.

        Raises:
            SearchError: the weights are missing, damaged, or from another network.
        """
        from search.network import load_weights

        network = self.architecture.build()
        load_weights(network, self.directory / record.WEIGHTS, {"architecture_sha256": self.result.architecture_sha256})
        return network

    def unpruned(self) -> "nn.Module | None":
        """Return the trained network that the search started from, or None if the method trains no such network.

        Raises:
            SearchError: see `network`.
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
        SearchError: the directory is not a run, the run is not finished, or a file is damaged; the message names the
            file.
    """
    directory = Path(directory)
    run = record.read_run(directory)
    result = record.read_result(directory, run)
    architecture = load_architecture(directory / record.ARCHITECTURE)
    history = record.read_history(directory, run)
    require_same_space(directory, architecture, result, history)
    return FinishedRun(directory=directory, run=run, result=result, architecture=architecture, history=history)


def require_same_space(
    directory: Path, architecture: Architecture, result: Result | None, history: Iterable[EpochDone]
) -> None:
    """Require that the networks in a run's files belong to its space.

    For those of epochs check only the names, as they need not ship.

    Raises:
        SearchError: a network does not belong to the space; the message names the file.
    """
    if not architecture.blocks:  # the space was made from a module that no file holds
        return
    space = architecture.origin()
    networks = (result.shipped, result.unpruned) if result else ()
    for choice in dict.fromkeys(network.choice for network in networks if network):
        try:
            space.network(choice)
        except SearchError as error:
            raise SearchError(f"{directory / record.RESULT} was changed after the search: {error}") from error
    largest = space.largest()
    for choice in dict.fromkeys(epoch.choice for epoch in history):
        places = (
            (choice.options, largest.options),
            (choice.depths, largest.depths),
            (choice.widths, largest.widths | largest.options),
        )
        if unknown := sorted(name for chosen, allowed in places for name in chosen.keys() - allowed.keys()):
            raise SearchError(
                f"{directory / record.HISTORY} was changed after the search: {space.name} has nothing to choose at "
                f"{unknown[0]}"
            )
