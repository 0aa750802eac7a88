import msgspec
import pytest

from latency import values


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (values.SampleUs, [0.001, values.MAX_US], [0.0, -1.0, 2 * values.MAX_US]),
        (values.TimeUs, [0.0, 1.0], [-0.001]),
        (values.TimeMs, [0.0, 3_600_000.0], [3_600_001.0]),
        (values.Share, [0.0, 1.0], [-0.1, 1.1]),
        (values.Count, [0, 2**62], [-1, 2**62 + 1]),
        (values.Width, [1, values.MAX_WIDTH], [0, values.MAX_WIDTH + 1]),
        (values.Kept, [0], [-1]),
        (values.Pixels, [1, values.MAX_RESOLUTION], [0, values.MAX_RESOLUTION + 1]),
        (values.Seed, [0, 2**63 - 1], [-1]),
        (values.Sha256, ["0" * 64], ["", "0" * 63, "0" * 64 + "\n", "G" * 64]),
        (values.OptionalSha256, ["", "f" * 64], ["f", "f" * 65]),
    ],
)
def test_values_are_decoded_only_within_their_limits(kind, accepted, refused):
    for value in accepted:
        assert msgspec.json.decode(msgspec.json.encode(value), type=kind) == value
    for value in refused:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(msgspec.json.encode(value), type=kind)


@pytest.mark.parametrize("text", ["", "2026-02-30", "31.01.2026", "2026"])
def test_a_date_that_is_none_names_its_field(text):
    values.require_date("created", "2026-01-31")
    with pytest.raises(ValueError, match=r"Expected a date such as 2026-01-31 in field `created`, got "):
        values.require_date("created", text)
