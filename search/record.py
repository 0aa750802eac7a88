"""What a search says while it runs and what it leaves behind: events, history, result, and the directory of a run."""

from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import Struct

from latency import Latency
from latency.files import beside, sha256, write_whole
from search.architecture import Architecture
from search.errors import SearchError
from search.files import read_json, to_json
from search.spaces import Widths

RUN, RESULT, HISTORY, CHECKPOINT = "run.json", "result.json", "history.jsonl", "checkpoint.safetensors"
ARCHITECTURE, WEIGHTS, BASELINE = "architecture.json", "weights.safetensors", "baseline.safetensors"

Phase = Literal["pretrain", "search", "finetune"]
PHASES: tuple[Phase, ...] = ("pretrain", "search", "finetune")


class EpochDone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An epoch is over, and saved. Also a line of `history.jsonl`."""

    phase: Phase
    epoch: int
    """of the phase, from 1"""
    epochs: int
    """of the phase"""
    loss: float
    """mean over the epoch, penalty included"""
    train_accuracy: float
    """share of the training images that were right when they were shown"""
    accuracy: float
    """share of the held-out images that are right now; during the search, with norms that use the statistics of each batch"""
    widths: Widths
    """channels kept in each group"""
    returned: Widths = ()
    """during the search, of each group the channels that were gone after the epoch before and are back"""
    latency_us: float | None
    """predicted for these widths, rounded up to ones that can ship; None where no table was given"""
    macs: int = 0
    """of the deployed network of those widths"""
    beta: float
    """weight of the latency penalty; 0 outside of the search"""


class Resumed(Struct, frozen=True, kw_only=True):
    """A run that was interrupted goes on after these epochs."""

    history: tuple[EpochDone, ...]


class Chosen(Struct, frozen=True, kw_only=True):
    """The search is over: these widths are fine-tuned and shipped."""

    widths: Widths
    latency: Latency | None
    """None where no table was given"""


class NetworkResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network with its figures; parameters and MACs as deployed."""

    widths: Widths
    accuracy: float
    """share of the held-out images"""
    parameters: int
    macs: int
    predicted: Latency | None
    """None where no table was given"""


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came out, against where it started: `result.json`."""

    schema: Literal["result/1"] = "result/1"
    architecture_sha256: str
    held_out_images: int
    budget_us: float | None
    budget_macs: float | None = None
    """in the place of microseconds, where no table was given"""
    unpruned: NetworkResult
    shipped: NetworkResult
    """masked, after fine-tuning"""
    free_channels: Widths = ()
    """of the shipped network, for each layer: channels that cost nothing by the table"""


class Finished(Struct, frozen=True, kw_only=True):
    """The run is complete on disk."""

    architecture: Architecture
    result: Result


Event = Resumed | EpochDone | Chosen | Finished


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that determines a run: `run.json`."""

    schema: Literal["run/1"] = "run/1"
    method: str
    config: dict[str, Any]
    space: dict[str, Any]
    budget_us: float | None
    budget_macs: float | None = None
    """in the place of microseconds, where no table was given"""
    table_sha256: str
    data: str
    data_sha256: str
    baseline_sha256: str = ""
    """of the trained unpruned network that it started from; "" where it trained one"""
    versions: dict[str, str]
    """of the packages that compute; the only field that may differ when a run goes on"""


def open_run(out: Path, run: Run) -> str:
    """Begin or go on with a run in a directory; returns the sha256 of its `run.json`.

    Raises:
        SearchError: the directory holds another run, naming what differs, or something that is no run.
    """
    file = out / RUN
    if file.exists():
        found, wanted = (_flat(msgspec.to_builtins(value)) for value in (read_json(file, Run), run))
        for key in wanted | found:
            if not key.startswith("versions.") and found.get(key) != wanted.get(key):
                raise SearchError(
                    f"{out} holds another run: its {key} is {found.get(key)!r}, asked for {wanted.get(key)!r}; choose another --out"
                )
    elif out.exists() and not (out.is_dir() and all(entry == beside(file) for entry in out.iterdir())):
        raise SearchError(f"{out} exists and is no run of a search: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, to_json(run))
    return sha256(file)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts by its dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for field, inner in value.items() for key, leaf in _flat(inner, f"{name}.{field}" if name else str(field)).items()}
