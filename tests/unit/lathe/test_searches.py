import dataclasses

import pytest

from lathe import cli, parsing, searching
from search import processes
from search.methods import settings

SEARCH = "resolution channels cells input space out table also data task budget_ms budget_fraction backend precision this_device recipe baseline tensorboard json"
TRAINING = (
    "seed batch lr momentum weight_decay label_smoothing schedule lr_decay lr_decay_epochs augment ema drop_path distill teacher "
    "distill_weight temperature retrain train_precision memory_format devices"
)
PRUNING = f"{TRAINING} pretrain_epochs search_epochs finetune_epochs min_channels channel_multiple exclude"
VP_DARTS = (
    "seed batch lr momentum weight_decay label_smoothing schedule lr_decay lr_decay_epochs augment ema drop_path "
    "distill teacher distill_weight temperature retrain train_precision memory_format devices clip warmup_epochs "
    "prune_epochs train_epochs variant criterion importance validation_share subset final_subset looks prune_images alpha "
    "alpha_lr split alpha_0 first_k removal zeroize norms negative_alphas skip_dropout prune_dropout latency_weight "
    "latency_rate random_epochs"
)
PRUNET = (
    "seed batch lr momentum weight_decay label_smoothing schedule lr_decay lr_decay_epochs augment ema drop_path "
    "distill teacher distill_weight temperature retrain train_precision memory_format devices optimizer warmup_epochs search_epochs "
    "train_epochs search_batch search_lr search_weight_decay theta_lr width_lr theta_images proxy_classes alpha alpha_rate beta tau "
    "threshold t_initial t_final phi lam prunode last_norm prune_widths prune_blocks prune_layers recompute"
)
SETTINGS = {
    settings.PasSettings: f"{PRUNING} policy_lr bounded beta beta_rate cost regulariser",
    settings.UniformSettings: PRUNING,
    settings.MagnitudeSettings: PRUNING,
    settings.SlimmingSettings: f"{PRUNING} slimming",
    settings.TableSettings: f"{PRUNING} score score_images",
    settings.TasSettings: (
        f"{PRUNING} start searched depth_options samples weights interpolate norms architecture_lr architecture_weight_decay tau_schedule tau "
        "tau_final validation_share cost penalty cost_weight aim_rate tolerance entropy derive"
    ),
    settings.VpDartsSettings: VP_DARTS,
    settings.PrunetSettings: PRUNET,
}


@pytest.mark.parametrize("kind", SETTINGS, ids=lambda kind: kind.name)
def test_flags_of_searches_are_a_promise(kind):
    """Those that all have, and every setting of the method."""
    arguments = ["search", kind.name, "--space", "s", "--out", "o"]
    command = cli.parse(arguments)
    assert list(kind.__struct_fields__) == SETTINGS[kind].split()
    flags = [
        field.name for field in dataclasses.fields(command) if field.name not in ("given", "arguments", "settings")
    ]
    assert flags == SEARCH.split()
    for name in kind.__struct_fields__:
        value = {"exclude": "block0", "regulariser": "paper"}.get(name, getattr(command.settings, name))
        more = ["--cost", "macs"] if name == "regulariser" else []
        found = cli.parse([*arguments, f"--{name.replace('_', '-')}", str(value), *more])
        assert getattr(found.settings, name) == value
        assert found.given == tuple(
            field for field in kind.__struct_fields__ if field == name or (more and field == "cost")
        )


def test_what_settings_refuse_is_one_line_with_the_flag():
    with pytest.raises(parsing.UsageError, match=r"^--lr must be above 0 and finite, found -3.0$"):
        cli.parse(["search", "pas", "--space", "s", "--out", "o", "--lr", "-3"])


WORDS = ["search", "uniform", "--space", "s", "--out", "o", "--devices=2", "--lr", "0.5"]


def test_a_search_knows_which_settings_its_command_line_gives():
    command = cli.parse(WORDS)
    assert (command.settings.devices, command.settings.lr) == (2, 0.5)
    assert command.given == ("lr", "devices"), "in the order of the settings"
    assert command.arguments == tuple(WORDS)


def test_a_search_on_several_devices_is_the_same_command_in_a_process_for_each(monkeypatch):
    def run_lathe(arguments, devices):
        started.append((arguments, devices))
        return 7

    started = []
    monkeypatch.delenv(processes.RANK, raising=False)
    monkeypatch.setattr(processes, "run_lathe", run_lathe)
    assert cli.parse(WORDS).run() == 7
    assert started == [(tuple(WORDS), 2)]


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_process_that_loses_another_leaves_the_report_to_the_one_that_started_it(rank, monkeypatch, capsys):
    def search(command, warn):
        commands.append(command)
        raise processes.PeerLost("gone")

    commands = []
    monkeypatch.setenv(processes.RANK, rank)
    monkeypatch.setattr(searching, "search", search)
    assert cli.parse([*WORDS, "--tensorboard"]).run() == processes.LOST
    assert [command.tensorboard for command in commands] == [rank == "0"], "one process writes events"
    assert capsys.readouterr() == ("", "")
