import pytest

from latency import LatencyError
from lathe import cli, fleet, profiling

PROFILE = "profile repvgg-mini --out t.latency.jsonl"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--shards 4", "--shards 4 is of a Ray cluster: give --engine ray too"),
        ("--resources gpu_type:h100", "--resources gpu_type:h100 is of a Ray cluster"),
        (
            "--engine ray --shard 1/4",
            "--shard 1/4 is of one device: --engine ray measures all shards, give their number by --shards",
        ),
        ("--engine ray --like old.latency.jsonl", "--like measures too few blocks for --engine ray"),
        ("--engine ray --save-timing-cache c", "--save-timing-cache c: each part of --engine ray has one of its own"),
        ("--engine ray --resources gpu=many", "--resources 'gpu=many' is not NAME or NAME=AMOUNT"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LatencyError, match=message):
        list(profiling.profile(cli.parse([*PROFILE.split(), *flags.split()])))
    assert not list(tmp_path.iterdir())


def test_a_shard_is_given_what_the_command_was():
    flags = "--backend tensorrt-rtx --networks 0 --coverage adaptive --resolution 64"
    command = cli.parse(
        [*PROFILE.split(), *flags.split(), "--engine", "ray", "--shards", "4", "--resources", "gpu_type:h100", "--json"]
    )
    given = [*fleet._flags(command)]
    assert cli.parse([*PROFILE.split(), *given]) == cli.parse([*PROFILE.split(), *flags.split()])
    assert fleet._resources(command) == {"CPU": 1, "GPU": 1, "gpu_type:h100": 1}
    assert fleet._resources(cli.parse([*PROFILE.split(), "--threads", "4", "--engine", "ray"])) == {"CPU": 4}
