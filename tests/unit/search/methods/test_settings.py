import pytest

from search import SearchError
from search.methods.settings import (
    MagnitudeSettings,
    PasSettings,
    PruningSettings,
    SlimmingSettings,
    TasSettings,
    UniformSettings,
    recipe,
)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"search_epochs": 0}, "^--search-epochs must be from 1 to 1000000000, found 0$"),
        ({"pretrain_epochs": -1}, "^--pretrain-epochs must be from 0 "),
        ({"lr": 0.0}, "^--lr must be above 0 and finite, found 0.0$"),
        ({"lr": float("inf")}, "^--lr must be above 0 and finite, found inf$"),
        ({"policy_lr": float("nan")}, "^--policy-lr must be above 0 and finite, found nan$"),
        ({"momentum": float("nan")}, "^--momentum must be from 0 to 1, found nan$"),
        ({"seed": 2**70}, "^--seed must be from 0 to 9223372036854775807, found"),
        ({"batch": 65, "devices": 2}, "^--batch must be a multiple of --devices, 2, found 65$"),
        ({"devices": 0}, "^--devices must be from 1 to"),
        ({"ema": 1.0}, "^--ema must be from 0 to 0.999999999, found 1.0$"),
        ({"drop_path": -0.1}, "^--drop-path must be from 0 to"),
        ({"lr_decay": 1.5}, "^--lr-decay must be from 0 to 1, found 1.5$"),
        ({"lr_decay_epochs": 0.0}, "^--lr-decay-epochs must be above 0 and finite, found 0.0$"),
        ({"temperature": 0.0}, "^--temperature must be above 0"),
        ({"distill_weight": 2.0}, "^--distill-weight must be from 0 to 1"),
        ({"augment": "blur"}, "^--augment has 'blur'"),
        ({"teacher": "run"}, "^--teacher run needs --distill tas or hinton$"),
        ({"regulariser": "paper"}, "needs --cost macs, found latency"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed, message):
    with pytest.raises(SearchError, match=message):
        PasSettings(**changed)


def test_the_recipe_is_by_the_data_and_what_is_chosen_stays():
    assert recipe(PasSettings, 1_000, seed=3) == PasSettings(seed=3)
    many = recipe(PasSettings, 10_001)
    assert (many.batch, many.policy_lr) == (128, 0.1)
    assert recipe(PasSettings, 10_001, batch=7).batch == 7


def test_the_recipe_of_the_paper():
    """Section 5.1 and Eq. 2, with nothing of ours left in: no bounds, no label smoothing, widths of any number of channels."""
    found = recipe(PasSettings, 1_000_000, "paper", seed=2)
    assert (found.search_epochs, found.finetune_epochs, found.batch, found.lr, found.policy_lr) == (
        10,
        50,
        1024,
        0.4,
        0.4,
    )
    assert (found.momentum, found.weight_decay, found.seed) == (0.875, 3.05e-5, 2)
    assert (found.bounded, found.label_smoothing, found.channel_multiple, found.min_channels) == (False, 0.0, 1, 1)
    assert (found.augment, found.retrain) == ("resized-crop,flip", "finetune")
    assert recipe(PasSettings, 1, "paper", bounded=True).bounded


@pytest.mark.parametrize("kind", [UniformSettings, MagnitudeSettings, SlimmingSettings])
def test_a_baseline_is_trained_as_the_method_is(kind):
    for images, name in ((1, "auto"), (10_001, "auto"), (1, "paper")):
        mine, of_pas = recipe(kind, images, name), recipe(PasSettings, images, name)
        shared = set(PruningSettings.__struct_fields__) - {"retrain"}  # only what is pruned after the search can rewind
        assert all(getattr(mine, field) == getattr(of_pas, field) for field in shared)


def test_the_recipe_of_the_tas_paper_has_every_number_as_printed():
    """Sections 3.1, 4.1 and Algorithm 1, for CIFAR."""
    found = recipe(TasSettings, 50_000, "paper", seed=4)
    assert (found.pretrain_epochs, found.search_epochs, found.finetune_epochs, found.batch, found.seed) == (
        300,
        600,
        300,
        256,
        4,
    )
    assert (found.lr, found.momentum, found.weight_decay, found.schedule, found.label_smoothing) == (
        0.1,
        0.9,
        5e-4,
        "cosine",
        0.0,
    )
    assert (found.architecture_lr, found.architecture_weight_decay) == (1e-3, 1e-3)
    assert (found.tau, found.tau_final, found.tau_schedule) == (10.0, 0.1, "linear")
    assert (found.samples, found.weights, found.interpolate, found.norms, found.validation_share) == (
        2,
        "sample",
        True,
        "each",
        0.5,
    )
    assert (found.penalty, found.cost, found.cost_weight, found.tolerance, found.entropy) == (
        "paper",
        "macs",
        2.0,
        0.05,
        0.0,
    )
    assert (found.retrain, found.distill, found.distill_weight, found.temperature) == ("scratch", "tas", 0.9, 4.0)
    assert (found.derive, found.depth_options, found.channel_multiple, found.start) == ("argmax", "all", 1, "scratch")
    assert found.augment == "crop:4,flip"


def test_a_short_tas_search_moves_its_logits_faster():
    assert recipe(TasSettings, 1_000).architecture_lr == 8 / (10 * (500 // 64))
    assert recipe(TasSettings, 50_000, search_epochs=100).architecture_lr == 0.01
    assert recipe(TasSettings, 1_000, architecture_lr=0.5).architecture_lr == 0.5
