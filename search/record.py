"""What a search says while it runs and what it leaves behind: events, history, result, and the directory of a run."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from deploy.metric import Metric
from latency import Latency
from latency.decoding import MAX_JSON_BYTES
from latency.files import MAX_FILE_BYTES, beside, raised_as, sha256, write_whole
from latency.values import Count, Kept, Macs, OptionalSha256, SampleUs, Sha256, Single
from search.architecture import Architecture
from search.errors import SearchError
from search.files import Upgrade, read_json, read_json_lines, to_json, upgraded
from search.space import Choice

RUN, RESULT, HISTORY, CHECKPOINT = "run.json", "result.json", "history.jsonl", "checkpoint.safetensors"
CSV, USAGE = "history.csv", "usage.jsonl"
ARCHITECTURE, WEIGHTS, BASELINE = "architecture.json", "weights.safetensors", "baseline.safetensors"

# run/4: `also`, budgets on further devices.
# run/3: the metric of the task; result/3 and history/3: scores and their standard errors, where /2 had accuracies.
# run/2: any method over any space: `settings` are of the method alone. In run/1 the baselines were policies of the method pas.
# result/2: a network is a choice by names, of any space; the run and the weights have their hashes. In result/1 it was a list of widths;
# a prediction had no `origin`.
# history/2: a line that names the schema comes first; an epoch has a choice, and the figures of its method. Of the first version,
# which had no name, an epoch had a list of widths, and the weight of Pruning-as-Search's penalty.
# usage/1: what each epoch took; a line that names the schema comes first.
_AGAIN = "run `lathe search` again, into a new directory"

RUN_SCHEMA = "run/4"
RESULT_SCHEMA = "result/3"
HISTORY_SCHEMA = "history/3"
USAGE_SCHEMA = "usage/1"

Spread = Annotated[float, Meta(ge=0, le=3.5e38)]
"""A standard error."""


class EpochDone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An epoch is over, and saved. Also a line of `history.jsonl`."""

    phase: str
    epoch: Count
    """of the phase, from 1"""
    epochs: Count
    """of the phase"""
    loss: Single
    """mean over the epoch, penalty included"""
    train_score: Single
    """the task's metric on the training samples when they were shown"""
    score: Single
    """the same on the held-out samples now; of a network that changes from step to step, with the statistics of each batch"""
    score_error: Spread | None
    """standard error of that; None of an earlier version"""
    choice: Choice
    """the network that the method has now"""
    latency_us: SampleUs | None
    """predicted for what would ship of it; None where no table was given"""
    macs: Count
    """of the deployed network of what would ship"""
    figures: dict[str, float] = {}
    """what the method has to say: `beta`, the weight of a penalty; `returned.GROUP`, channels that were gone after the epoch before and
    are back"""


class Usage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an epoch of training took. Apart from the history, which is the same whenever and wherever a run is made."""

    phase: str
    epoch: Count
    """of the phase, from 1"""
    steps: Count
    seconds: Annotated[float, Meta(ge=0)]
    """of all steps, with the reading of their samples"""
    saved_bytes: Count
    """what the forward pass of the largest step keeps for its gradients, on one device"""


class Started(Struct, frozen=True, kw_only=True):
    """A run begins, or goes on."""

    epochs: dict[str, int]
    """of every phase, in order"""
    history: tuple[EpochDone, ...]
    """of the epochs that are done already"""
    metric: Metric
    """what the scores are"""


class Chosen(Struct, frozen=True, kw_only=True):
    """The search is over: this network is trained on and shipped."""

    choice: Choice
    latency: Latency | None
    """None where no table was given"""


class NetworkResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One network with its figures; parameters and MACs as deployed."""

    choice: Choice
    score: Single
    """the metric on the held-out samples"""
    score_error: Spread
    """its standard error"""
    parameters: Count
    macs: Count
    predicted: Latency | None
    """None where no table was given"""


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What came out, against where it started: `result.json`."""

    schema: Literal["result/3"] = RESULT_SCHEMA
    run_sha256: OptionalSha256
    """of `run.json`; "" in a run of the first version, as that of the weights"""
    architecture_sha256: Sha256
    weights_sha256: OptionalSha256
    metric: Metric
    """what the scores are"""
    held_out_samples: Count
    budget_us: SampleUs | None
    budget_macs: Macs | None = None
    """in the place of microseconds, where no table was given"""
    unpruned: NetworkResult | None
    """None where the method has no such network"""
    shipped: NetworkResult
    """masked, after fine-tuning"""
    free_channels: dict[str, Kept] = {}
    """of the shipped network, by group: channels that cost nothing by the table"""


class Finished(Struct, frozen=True, kw_only=True):
    """The run is complete on disk."""

    architecture: Architecture
    result: Result


Event = Started | EpochDone | Chosen | Finished


class OtherBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget on a further device."""

    table_sha256: Sha256
    """of the device's latency table"""
    budget_us: SampleUs


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that determines a run: `run.json`."""

    schema: Literal["run/4"] = RUN_SCHEMA
    method: str
    settings: dict[str, Any]
    space: dict[str, Any]
    """as `Space.record` has it"""
    budget_us: SampleUs | None
    budget_macs: Macs | None = None
    """in the place of microseconds, where no table was given"""
    table_sha256: OptionalSha256
    also: tuple[OtherBudget, ...] = ()
    data: str
    """what it is trained on: data that `lathe` knows by name, or a task of one's own, FILE.py:FUNCTION"""
    data_sha256: OptionalSha256
    """of every sample; of a task of one's own, of the file that makes it"""
    metric: Metric
    """what its networks are judged by"""
    baseline_sha256: OptionalSha256 = ""
    """of the trained unpruned network that it started from; "" where it trained one"""
    teacher_sha256: str = ""
    """of the weights of another run's network that it distils from"""
    versions: dict[str, str]
    """of the packages that compute; the only field that may differ when a run goes on"""


def open_run(out: Path, run: Run) -> str:
    """Begin or go on with a run in a directory; returns the sha256 of its `run.json`.

    Raises:
        SearchError: the directory holds another run, naming what differs, one of an earlier version, or something that is not a run.
    """
    file = out / RUN
    if file.exists():
        if (schema := read_json(file, dict).get("schema")) in ("run/1", "run/2", "run/3"):
            raise SearchError(
                f"{out} holds a run of an earlier version ({schema}), which can be exported and reported, not continued: "
                "choose another --out"
            )
        found, wanted = (_flat(msgspec.to_builtins(value)) for value in (read_json(file, Run), run))
        for key in wanted | found:
            if not key.startswith("versions.") and found.get(key) != wanted.get(key):
                raise SearchError(
                    f"{out} holds another run: its {key} is {found.get(key)!r}, asked for {wanted.get(key)!r}; choose another --out"
                )
    elif out.exists() and not (out.is_dir() and all(entry == beside(file) for entry in out.iterdir())):
        raise SearchError(f"{out} exists and is not a run of a search: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, to_json(run))
    return sha256(file)


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of nested dicts by its dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for field, inner in value.items() for key, leaf in _flat(inner, f"{name}.{field}" if name else str(field)).items()}


def read_run(out: Path) -> Run:
    """What determines a run, of any version.

    Raises:
        SearchError: there is none, or it is damaged.
    """
    return read_json(out / RUN, Run, {"run/1": run_from_1, "run/2": run_from_2, "run/3": run_from_3})


def read_result(out: Path, run: Run) -> Result:
    """What came out of a run, of any version.

    Raises:
        SearchError: there is none, it is damaged, or a file that it is of was changed.
    """
    upgrades = {"result/1": lambda fields: result_from_1(fields, group_names(run)), "result/2": result_from_2}
    result = read_json(out / RESULT, Result, upgrades)
    _require_unchanged(out, result)
    return result


def _require_unchanged(out: Path, result: Result) -> None:
    """Check that the files which a result names are as they were; one that is missing is for its reader to miss."""
    named = {
        RUN: (result.run_sha256, MAX_JSON_BYTES),
        ARCHITECTURE: (result.architecture_sha256, MAX_JSON_BYTES),
        WEIGHTS: (result.weights_sha256, MAX_FILE_BYTES),
    }
    for name, (wanted, limit) in named.items():
        path = out / name
        if not wanted or not os.path.lexists(path):
            continue
        with raised_as(SearchError, _AGAIN):
            found = sha256(path, limit=limit)
        if found != wanted:
            raise SearchError(f"{path} was changed after the search: {RESULT} names the sha256 {wanted[:16]}, found {found[:16]}; {_AGAIN}")


def write_history(out: Path, history: Iterable[EpochDone]) -> None:
    """Write all epochs of a run."""
    lines = [{"schema": HISTORY_SCHEMA}, *history]
    write_whole(out / HISTORY, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_history(out: Path, run: Run) -> tuple[EpochDone, ...]:
    """The epochs of a run, of any version; none where none is over.

    Raises:
        SearchError: a line is damaged.
    """
    path = out / HISTORY
    if not os.path.lexists(path):
        return ()
    lines = list(read_json_lines(path, dict))
    if not lines:
        raise SearchError(f"{path} is empty: {_AGAIN}")
    schema, begin = "history/1", 0
    if "schema" in lines[0]:
        schema, begin = _require_schema(path, lines[0], HISTORY_SCHEMA, "history/2"), 1
    if schema != HISTORY_SCHEMA:
        lines[begin:] = [{"schema": schema, **line} for line in lines[begin:]]
    upgrades: dict[str, Upgrade] = {
        "history/1": lambda fields: epoch_from_1(fields, group_names(run), penalised=run.method == "pas"),
        "history/2": epoch_from_2,
    }
    return tuple(upgraded(line, EpochDone, upgrades, f"{path}, line {number},") for number, line in enumerate(lines[begin:], begin + 1))


def write_usage(out: Path, usage: Iterable[Usage]) -> None:
    """Write what all epochs of a run took."""
    lines = [{"schema": USAGE_SCHEMA}, *usage]
    write_whole(out / USAGE, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_usage(out: Path) -> tuple[Usage, ...]:
    """What the epochs of a run took; none where it was not written, as by earlier versions.

    Raises:
        SearchError: a line is damaged.
    """
    path = out / USAGE
    if not os.path.lexists(path):
        return ()
    lines = list(read_json_lines(path, dict))
    if not lines or "schema" not in lines[0]:
        raise SearchError(f"{path} does not begin with its schema: take it away, or {_AGAIN}")
    _require_schema(path, lines[0], USAGE_SCHEMA)
    return tuple(upgraded(line, Usage, {}, f"{path}, line {number},") for number, line in enumerate(lines[1:], 2))


def _require_schema(path: Path, line: Mapping[str, Any], *known: str) -> str:
    """The schema of a first line, which names that alone."""
    schema = line["schema"]
    if schema not in known:
        raise SearchError(f"{path} has the schema {schema!r}, known is {' or '.join(known)}: read it by the version of lathe that wrote it")
    if strange := line.keys() - {"schema"}:
        raise SearchError(f"{path}, line 1, has the field {min(strange)!r}, which {schema} does not: {_AGAIN}")
    return schema


# Upgrades. A run of the first version was of widths: which group each belongs to is in its space.


def run_from_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """run/1 -> run/2: a policy becomes a method, whose settings are its own alone."""
    from search.methods.settings import MagnitudeSettings, PasSettings, SlimmingSettings, UniformSettings

    kinds = {"pas": PasSettings, "uniform": UniformSettings, "magnitude": MagnitudeSettings, "slimming": SlimmingSettings}
    config = dict(fields["config"])
    policy = config.get("policy", "dbc")
    method = "pas" if policy == "dbc" else policy
    settings = {name: value for name, value in config.items() if name in kinds[method].__struct_fields__}
    space = {"kind": "chain" if "layers" in fields["space"] else "traced", **fields["space"]}
    kept = {name: value for name, value in fields.items() if name != "config"}
    return {**kept, "schema": "run/2", "method": method, "settings": settings, "space": space}


def result_from_1(fields: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """result/1 -> result/2: widths and free channels by name; no hashes of the run and the weights."""

    def network(found: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in found.items() if name != "widths"}
        return {**kept, "choice": _choice_from_1(found["widths"], names)}

    free = dict(zip(names, fields.get("free_channels", ()), strict=False))
    networks = {name: network(fields[name]) for name in ("unpruned", "shipped")}
    return {**fields, **networks, "schema": "result/2", "run_sha256": "", "weights_sha256": "", "free_channels": free}


def epoch_from_1(fields: Mapping[str, Any], names: list[str], *, penalised: bool) -> dict[str, Any]:
    """A line of a history of the first version -> history/2."""
    returned = dict(zip(names, fields.get("returned", ()), strict=False))
    figures = {f"returned.{name}": count for name, count in returned.items() if count}
    if penalised and fields["phase"] == "search":
        figures["beta"] = fields["beta"]
    kept = {name: value for name, value in fields.items() if name not in ("schema", "widths", "returned", "beta")}
    return {"macs": 0, **kept, "schema": "history/2", "choice": _choice_from_1(fields["widths"], names), "figures": figures}


_ACCURACY = {"name": "accuracy", "unit": "%"}
"""What every run was judged by before the third version."""


def run_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """run/2 -> run/3: the metric is the accuracy."""
    return {**fields, "schema": "run/3", "metric": _ACCURACY}


def run_from_3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """run/3 -> run/4: there was one device."""
    return {**fields, "schema": RUN_SCHEMA}


def result_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """result/2 -> result/3: accuracies become scores, with the standard error of a share of the held-out images."""
    images = fields["held_out_images"]

    def network(found: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in found.items() if name != "accuracy"}
        share = found["accuracy"]
        return {**kept, "score": share, "score_error": math.sqrt(share * (1 - share) / images)}

    kept = {name: value for name, value in fields.items() if name != "held_out_images"}
    networks = {name: fields[name] and network(fields[name]) for name in ("unpruned", "shipped")}
    return {**kept, **networks, "schema": "result/3", "metric": _ACCURACY, "held_out_samples": images}


def epoch_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A line of history/2 -> history/3: accuracies become scores, whose standard errors were not kept."""
    kept = {name: value for name, value in fields.items() if name not in ("schema", "train_accuracy", "accuracy")}
    return {**kept, "train_score": fields["train_accuracy"], "score": fields["accuracy"], "score_error": None}


def _choice_from_1(widths: list[int], names: list[str]) -> dict[str, Any]:
    return {"widths": dict(zip(names, widths, strict=True))}


def group_names(run: Run) -> list[str]:
    """Names of the groups of a space of widths, in order."""
    if run.space.get("kind") == "chain":
        return [layer["name"] for layer in run.space["layers"]]
    return [name for name, _ in run.space.get("members", ())]
