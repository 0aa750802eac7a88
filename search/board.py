"""Export the history of a run: as CSV for spreadsheets, and as events for TensorBoard."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.metric import ACCURACY, Metric
from latency.errors import import_extra
from search.record import EpochDone, Event, Started

TENSORBOARD = "tensorboard"
"""Subdirectory of a run for the events."""


def csv_of(history: Iterable[EpochDone], metric: Metric) -> bytes:
    """Return one line per epoch, with a column for every figure and every part of the network.

    Scores are named after the metric.
    """
    lines = [_csv_row(done, metric) for done in history]
    columns = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _csv_row(done: EpochDone, metric: Metric) -> dict[str, Any]:
    parts = {"width": done.choice.widths, "option": done.choice.options, "depth": done.choice.depths}
    chosen = {f"{kind}.{name}": value for kind, values in parts.items() for name, value in values.items()}
    return {"phase": done.phase, "epoch": done.epoch, **_numbers(done, metric), **chosen}


def _numbers(done: EpochDone, metric: Metric) -> Mapping[str, float]:
    latency = {} if done.latency_us is None else {"latency_us": done.latency_us}
    scores = {f"train_{metric.name}": done.train_score, metric.name: done.score}
    return {"loss": done.loss, **scores, **latency, "macs": float(done.macs), **done.figures}


def require_tensorboard() -> None:
    """Require that events can be written.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    import_extra("tensorboardX", "tensorboard")


def with_tensorboard(events: Iterable[Event], out: Path) -> Iterator[Event]:
    """Pass on the events, and write every epoch to `out`/tensorboard for `tensorboard --logdir`.

    When a run resumes, the events are written anew, so that no epoch appears twice.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    writing: Any = import_extra("tensorboardX", "tensorboard")
    writer, metric, step = None, ACCURACY, 0
    try:
        for event in events:
            if isinstance(event, Started):
                for file in (out / TENSORBOARD).glob("events.out.tfevents.*"):
                    file.unlink()
                metric = event.metric
                writer = writing.SummaryWriter(str(out / TENSORBOARD), write_to_disk=True)
            epochs = event.history if isinstance(event, Started) else (event,) if isinstance(event, EpochDone) else ()
            for epoch in epochs:
                assert writer is not None, "a run begins with `Started`"
                step += 1
                for name, value in _numbers(epoch, metric).items():
                    writer.add_scalar(f"{epoch.phase}/{name}", value, step)
                for name, width in epoch.choice.widths.items():
                    writer.add_scalar(f"widths/{name}", width, step)
                writer.flush()
            yield event
    finally:
        if writer is not None:
            writer.close()
