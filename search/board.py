"""The history of a run for other tools: a CSV for spreadsheets, and events for TensorBoard."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from deploy.metric import ACCURACY, Metric
from latency.errors import import_extra
from search.record import EpochDone, Event, Started

TENSORBOARD = "tensorboard"
"""Directory of the events, in that of the run."""


def csv_of(history: Iterable[EpochDone], metric: Metric) -> bytes:
    """A line an epoch.

    A column for every number and every part of the network that any epoch has; scores by the name of the metric.
    """
    lines = [_line(done, metric) for done in history]
    columns = dict.fromkeys(name for line in lines for name in line)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode()


def _line(done: EpochDone, metric: Metric) -> dict[str, Any]:
    parts = {"width": done.choice.widths, "option": done.choice.options, "depth": done.choice.depths}
    chosen = {f"{kind}.{name}": value for kind, values in parts.items() for name, value in values.items()}
    return {"phase": done.phase, "epoch": done.epoch, **_numbers(done, metric), **chosen}


def _numbers(done: EpochDone, metric: Metric) -> Mapping[str, float]:
    latency = {} if done.latency_us is None else {"latency_us": done.latency_us}
    scores = {f"train_{metric.name}": done.train_score, metric.name: done.score}
    return {"loss": done.loss, **scores, **latency, "macs": float(done.macs), **done.figures}


def require_tensorboard() -> None:
    """Check that events can be written.

    Raises:
        MissingExtra: tensorboardX is not installed.
    """
    import_extra("tensorboardX", "tensorboard")


def with_tensorboard(events: Iterable[Event], out: Path) -> Iterator[Event]:
    """The same events; every epoch is also written to `out`/tensorboard, where `tensorboard --logdir` finds it.

    What is there is made anew when a run goes on, so that no epoch is shown twice.

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
                assert writer is not None, "a run says first that it starts"
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
