import csv
import io
import itertools
import struct
from collections import defaultdict

import pytest

from latency.errors import MissingExtra
from search import board
from search.record import EpochDone

QUICK = {"pretrain_epochs": 1, "search_epochs": 2, "finetune_epochs": 1}


def scalars(directory):
    """Values by tag and step, of all event files of a directory."""
    from tensorboardX.proto import event_pb2

    found = defaultdict(dict)
    for file in directory.iterdir():
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                assert event.step not in found[value.tag]
                found[value.tag][event.step] = value.simple_value
    return found


def test_the_csv_of_a_run_has_every_epoch(search_into, tmp_path):
    epochs = [event for event in search_into(tmp_path / "run", **QUICK) if isinstance(event, EpochDone)]
    lines = list(csv.DictReader(io.StringIO((tmp_path / "run" / "history.csv").read_text())))
    assert [(line["phase"], int(line["epoch"])) for line in lines] == [(done.phase, done.epoch) for done in epochs]
    for line, done in zip(lines, epochs, strict=True):
        assert float(line["loss"]) == done.loss
        assert float(line["latency_us"]) == done.latency_us
        assert {name: int(line[f"width.{name}"]) for name in "abc"} == done.choice.widths
        assert line["beta"] == (str(done.figures["beta"]) if done.phase == "search" else "")


def test_tensorboard_has_every_epoch_once_also_of_a_run_that_goes_on(search_into, tmp_path):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    out = tmp_path / "run"
    list(itertools.islice(board.with_tensorboard(search_into(out, **QUICK), out), 3))
    events = list(board.with_tensorboard(search_into(out, **QUICK), out))
    epochs = [*events[0].history, *(event for event in events if isinstance(event, EpochDone))]
    found = scalars(out / "tensorboard")
    assert found["finetune/accuracy"] == {4: pytest.approx(epochs[3].score)}
    assert found["search/beta"].keys() == {2, 3}
    assert [found["widths/a"][step] for step in range(1, 5)] == [done.choice.widths["a"] for done in epochs]


def test_the_extra_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(MissingExtra, match=r"\[tensorboard\]'$"):
        board.require_tensorboard()
