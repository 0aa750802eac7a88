import safetensors

from search.record import EpochDone


def test_slimming_shrinks_the_scales_of_norms(search_into, tmp_path):
    sizes = []
    for strength in (1e-9, 1e-1):
        out = tmp_path / str(strength)
        for event in search_into(out, "slimming", slimming=strength):
            if isinstance(event, EpochDone) and (event.phase, event.epoch) == ("search", 4):
                break
        with safetensors.safe_open(out / "checkpoint.safetensors", framework="pt") as file:
            sizes.append(sum(file.get_tensor(name).abs().sum() for name in file.keys() if name.endswith("norm.weight")))  # noqa: SIM118
    assert sizes[1] < 0.9 * sizes[0]
