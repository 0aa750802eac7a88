"""Records of a search: events while it runs, and the files of its directory: run, history, usage and result."""

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta, Struct

from deploy.metric import Metric
from latency import Latency
from latency.decoding import MAX_JSON_BYTES
from latency.files import MAX_FILE_BYTES, partial_path, raised_as, sha256, write_atomically
from latency.values import Count, Kept, Macs, OptionalSha256, SampleUs, Sha256, Single
from search.architecture import Architecture
from search.errors import SearchError
from search.files import Upgrade, read_json, read_json_lines, to_json, upgraded
from search.space import Choice

RUN, RESULT, HISTORY, CHECKPOINT = "run.json", "result.json", "history.jsonl", "checkpoint.safetensors"
CSV, USAGE = "history.csv", "usage.jsonl"
ARCHITECTURE, WEIGHTS, BASELINE = "architecture.json", "weights.safetensors", "baseline.safetensors"

# run/4: adds `also`, budgets on further devices.
# run/3: adds the metric of the task. result/3 and history/3: scores with standard errors replace accuracies.
# run/2: any method over any space; `settings` holds only the method's own. In run/1 the baselines were policies of the
# method pas. result/2: a network is a choice by names in any space; adds hashes of the run and the weights. In result/1
# a network was a list of widths, and a prediction had no `origin`.
# history/2: the first line names the schema; an epoch has a choice and the figures of its method. In the first version,
# which had no name, an epoch had a list of widths and the weight of Pruning-as-Search's penalty.
# usage/1: time and memory of each epoch; the first line names the schema.
_RERUN = "run `lathe search` again, into a new directory"

RUN_SCHEMA = "run/4"
RESULT_SCHEMA = "result/3"
HISTORY_SCHEMA = "history/3"
USAGE_SCHEMA = "usage/1"

Spread = Annotated[float, Meta(ge=0, le=3.5e38)]
"""A standard error."""


class EpochDone(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A finished and saved epoch; also a line of `history.jsonl`."""

    phase: str
    epoch: Count
    """number in the phase, from 1"""
    epochs: Count
    """epochs in the phase"""
    loss: Single
    """mean over the epoch, including penalties"""
    train_score: Single
    """the task's metric on the training samples, computed during training"""
    score: Single
    """the metric on the held-out samples after the epoch; with batch statistics if the network changes between steps"""
    score_error: Spread | None
    """standard error of the score; None in files of earlier versions"""
    choice: Choice
    """the method's current network"""
    latency_us: SampleUs | None
    """predicted latency of the network that would ship; None without a table"""
    macs: Count
    """multiply-accumulates of the network that would ship"""
    figures: dict[str, float] = {}
    """the method's own figures, such as `beta`, the weight of a penalty, and `returned.GROUP`, the channels that
    returned in this epoch"""


class Usage(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Time and memory of a training epoch; kept apart from the history, which is reproducible."""

    phase: str
    epoch: Count
    """number in the phase, from 1"""
    steps: Count
    seconds: Annotated[float, Meta(ge=0)]
    """time of all steps, including loading of samples"""
    saved_bytes: Count
    """largest size that a forward pass saves for the backward pass, on one device"""


class Started(Struct, frozen=True, kw_only=True):
    """A run starts or resumes."""

    epochs: dict[str, int]
    """epochs of every phase, in order"""
    history: tuple[EpochDone, ...]
    """epochs already done"""
    metric: Metric
    """metric of the scores"""


class Chosen(Struct, frozen=True, kw_only=True):
    """The search has chosen the network to train and ship."""

    choice: Choice
    latency: Latency | None
    """predicted latency; None without a table"""


class NetworkResult(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A network's figures; parameters and MACs are those of its deployed form."""

    choice: Choice
    score: Single
    """the metric on the held-out samples"""
    score_error: Spread
    """its standard error"""
    parameters: Count
    macs: Count
    predicted: Latency | None
    """predicted latency; None without a table"""


class Result(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The result of a run, compared with its start: `result.json`."""

    schema: Literal["result/3"] = RESULT_SCHEMA
    run_sha256: OptionalSha256
    """hash of `run.json`; "" in a run of the first version, like that of the weights"""
    architecture_sha256: Sha256
    weights_sha256: OptionalSha256
    metric: Metric
    """metric of the scores"""
    held_out_samples: Count
    budget_us: SampleUs | None
    budget_macs: Macs | None = None
    """used instead of microseconds if there is no table"""
    unpruned: NetworkResult | None
    """None if the method trains no such network"""
    shipped: NetworkResult
    """the masked network after fine-tuning"""
    free_channels: dict[str, Kept] = {}
    """number of the shipped network's channels that add no cost by the table, by group"""


class Finished(Struct, frozen=True, kw_only=True):
    """The run is complete on disk."""

    architecture: Architecture
    result: Result


Event = Started | EpochDone | Chosen | Finished


class OtherBudget(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A budget on a further device."""

    table_sha256: Sha256
    """hash of the device's latency table"""
    budget_us: SampleUs


class Run(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that determines a run: `run.json`."""

    schema: Literal["run/4"] = RUN_SCHEMA
    method: str
    settings: dict[str, Any]
    space: dict[str, Any]
    """result of `Space.record`"""
    budget_us: SampleUs | None
    budget_macs: Macs | None = None
    """used instead of microseconds if there is no table"""
    table_sha256: OptionalSha256
    also: tuple[OtherBudget, ...] = ()
    data: str
    """name of the training data, or a user-defined task, FILE.py:FUNCTION"""
    data_sha256: OptionalSha256
    """hash of all samples, or of the file of a user-defined task"""
    metric: Metric
    """metric that networks are judged by"""
    baseline_sha256: OptionalSha256 = ""
    """hash of the trained unpruned network that the run starts from; "" if the run trains it"""
    teacher_sha256: str = ""
    """hash of the weights of another run's network that it distils from"""
    versions: dict[str, str]
    """versions of numerical packages; the only field that may differ when a run resumes"""


def open_run(out: Path, run: Run) -> str:
    """Start or resume a run in a directory; return the sha256 of its `run.json`.

    Raises:
        SearchError: the directory holds a different run, a run of an earlier version, or something else; the message
            names the difference.
    """
    file = out / RUN
    if file.exists():
        if (schema := read_json(file, dict[str, Any]).get("schema")) in ("run/1", "run/2", "run/3"):
            raise SearchError(
                f"{out} holds a run of an earlier version ({schema}), which can be exported and reported, not "
                "continued: "
                "choose another --out"
            )
        existing, wanted = _flat(msgspec.to_builtins(read_json(file, Run))), _flat(msgspec.to_builtins(run))
        for key in wanted | existing:
            if not key.startswith("versions.") and existing.get(key) != wanted.get(key):
                raise SearchError(
                    f"{out} holds another run: its {key} is {existing.get(key)!r}, asked for {wanted.get(key)!r}; "
                    "choose another --out"
                )
    elif out.exists() and not (out.is_dir() and all(entry == partial_path(file) for entry in out.iterdir())):
        raise SearchError(f"{out} exists and is not a run of a search: choose another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(file, to_json(run))
    return sha256(file)


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """Return every leaf of nested dicts by its dotted name."""
    if not isinstance(value, dict):
        return {name: value}
    leaves: dict[str, Any] = {}
    for field, inner in cast("dict[str, object]", value).items():
        leaves |= _flat(inner, f"{name}.{field}" if name else field)
    return leaves


def read_run(out: Path) -> Run:
    """Read the `run.json` of any version.

    Raises:
        SearchError: the file is missing or damaged.
    """
    return read_json(out / RUN, Run, {"run/1": run_from_1, "run/2": run_from_2, "run/3": run_from_3})


def read_result(out: Path, run: Run) -> Result:
    """Read the `result.json` of any version.

    Raises:
        SearchError: the file is missing or damaged, or a file that it refers to was changed.
    """
    upgrades: dict[str, Upgrade] = {
        "result/1": lambda fields: result_from_1(fields, group_names(run)),
        "result/2": result_from_2,
    }
    result = read_json(out / RESULT, Result, upgrades)
    _require_unchanged(out, result)
    return result


def _require_unchanged(out: Path, result: Result) -> None:
    """Require that the files named by a result are unchanged; missing ones are left to their readers."""
    named = {
        RUN: (result.run_sha256, MAX_JSON_BYTES),
        ARCHITECTURE: (result.architecture_sha256, MAX_JSON_BYTES),
        WEIGHTS: (result.weights_sha256, MAX_FILE_BYTES),
    }
    for name, (wanted, limit) in named.items():
        path = out / name
        if not wanted or not os.path.lexists(path):
            continue
        with raised_as(SearchError, _RERUN):
            actual = sha256(path, limit=limit)
        if actual != wanted:
            raise SearchError(
                f"{path} was changed after the search: {RESULT} names the sha256 {wanted[:16]}, found {actual[:16]}; "
                f"{_RERUN}"
            )


def write_history(out: Path, history: Iterable[EpochDone]) -> None:
    """Write the history of a run."""
    lines = [{"schema": HISTORY_SCHEMA}, *history]
    write_atomically(out / HISTORY, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_history(out: Path, run: Run) -> tuple[EpochDone, ...]:
    """Read the epochs of a run of any version; empty if there is no history yet.

    Raises:
        SearchError: a line is damaged.
    """
    path = out / HISTORY
    if not os.path.lexists(path):
        return ()
    lines = list(read_json_lines(path, dict[str, Any]))
    if not lines:
        raise SearchError(f"{path} is empty: {_RERUN}")
    schema, begin = "history/1", 0
    if "schema" in lines[0]:
        schema, begin = _require_schema(path, lines[0], HISTORY_SCHEMA, "history/2"), 1
    if schema != HISTORY_SCHEMA:
        lines[begin:] = [{"schema": schema, **line} for line in lines[begin:]]
    upgrades: dict[str, Upgrade] = {
        "history/1": lambda fields: epoch_from_1(fields, group_names(run), penalised=run.method == "pas"),
        "history/2": epoch_from_2,
    }
    return tuple(
        upgraded(line, EpochDone, upgrades, f"{path}, line {number},")
        for number, line in enumerate(lines[begin:], begin + 1)
    )


def write_usage(out: Path, usage: Iterable[Usage]) -> None:
    """Write the usage of all epochs of a run."""
    lines = [{"schema": USAGE_SCHEMA}, *usage]
    write_atomically(out / USAGE, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read_usage(out: Path) -> tuple[Usage, ...]:
    """Read the usage of a run's epochs; empty if it was not written, as by earlier versions.

    Raises:
        SearchError: a line is damaged.
    """
    path = out / USAGE
    if not os.path.lexists(path):
        return ()
    lines = list(read_json_lines(path, dict[str, Any]))
    if not lines or "schema" not in lines[0]:
        raise SearchError(f"{path} does not begin with its schema: delete it, or {_RERUN}")
    _require_schema(path, lines[0], USAGE_SCHEMA)
    return tuple(upgraded(line, Usage, {}, f"{path}, line {number},") for number, line in enumerate(lines[1:], 2))


def _require_schema(path: Path, line: Mapping[str, Any], *known: str) -> str:
    """Return the schema named by a first line, which has no other field."""
    schema = line["schema"]
    if schema not in known:
        raise SearchError(
            f"{path} has the schema {schema!r}, known is {' or '.join(known)}: read it by the version of lathe that "
            "wrote it"
        )
    if unknown := line.keys() - {"schema"}:
        raise SearchError(f"{path}, line 1, has the field {min(unknown)!r}, which {schema} does not: {_RERUN}")
    return schema


# Upgrades. A run of the first version searched widths; its space tells which group each width belongs to.


def run_from_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade run/1 to run/2: a policy becomes a method with only its own settings."""
    from search.methods.settings import MagnitudeSettings, PasSettings, SlimmingSettings, UniformSettings

    kinds = {
        "pas": PasSettings,
        "uniform": UniformSettings,
        "magnitude": MagnitudeSettings,
        "slimming": SlimmingSettings,
    }
    config = dict(fields["config"])
    policy = config.get("policy", "dbc")
    method = "pas" if policy == "dbc" else policy
    settings = {name: value for name, value in config.items() if name in kinds[method].__struct_fields__}
    space = {"kind": "chain" if "layers" in fields["space"] else "traced", **fields["space"]}
    kept = {name: value for name, value in fields.items() if name != "config"}
    return {**kept, "schema": "run/2", "method": method, "settings": settings, "space": space}


def result_from_1(fields: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """Upgrade result/1 to result/2: widths and free channels by name; no hashes of the run and the weights."""

    def network(old: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in old.items() if name != "widths"}
        return {**kept, "choice": _choice_from_1(old["widths"], names)}

    free = dict(zip(names, fields.get("free_channels", ()), strict=False))
    networks = {name: network(fields[name]) for name in ("unpruned", "shipped")}
    return {**fields, **networks, "schema": "result/2", "run_sha256": "", "weights_sha256": "", "free_channels": free}


def epoch_from_1(fields: Mapping[str, Any], names: list[str], *, penalised: bool) -> dict[str, Any]:
    """Upgrade a line of a history of the first version to history/2."""
    returned = dict(zip(names, fields.get("returned", ()), strict=False))
    figures = {f"returned.{name}": count for name, count in returned.items() if count}
    if penalised and fields["phase"] == "search":
        figures["beta"] = fields["beta"]
    kept = {name: value for name, value in fields.items() if name not in ("schema", "widths", "returned", "beta")}
    return {
        "macs": 0,
        **kept,
        "schema": "history/2",
        "choice": _choice_from_1(fields["widths"], names),
        "figures": figures,
    }


_ACCURACY = {"name": "accuracy", "unit": "%"}
"""The metric of every run before the third version."""


def run_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade run/2 to run/3: the metric is the accuracy."""
    return {**fields, "schema": "run/3", "metric": _ACCURACY}


def run_from_3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade run/3 to run/4: there is only one device."""
    return {**fields, "schema": RUN_SCHEMA}


def result_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade result/2 to result/3.

    Accuracies become scores, with the standard error of a share of the held-out images.
    """
    images = fields["held_out_images"]

    def network(old: Mapping[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in old.items() if name != "accuracy"}
        share = old["accuracy"]
        return {**kept, "score": share, "score_error": math.sqrt(share * (1 - share) / images)}

    kept = {name: value for name, value in fields.items() if name != "held_out_images"}
    networks = {name: fields[name] and network(fields[name]) for name in ("unpruned", "shipped")}
    return {**kept, **networks, "schema": "result/3", "metric": _ACCURACY, "held_out_samples": images}


def epoch_from_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Upgrade a line of history/2 to history/3: accuracies become scores, whose standard errors are unknown."""
    kept = {name: value for name, value in fields.items() if name not in ("schema", "train_accuracy", "accuracy")}
    return {**kept, "train_score": fields["train_accuracy"], "score": fields["accuracy"], "score_error": None}


def _choice_from_1(widths: list[int], names: list[str]) -> dict[str, Any]:
    return {"widths": dict(zip(names, widths, strict=True))}


def group_names(run: Run) -> list[str]:
    """Return the group names of a run's space of widths, in order."""
    if run.space.get("kind") == "chain":
        return [layer["name"] for layer in run.space["layers"]]
    return [name for name, _ in run.space.get("members", ())]
