import msgspec
import pytest

from search import SearchError
from search.files import read_json, to_json


class Point(msgspec.Struct, forbid_unknown_fields=True):
    x: int


def test_round_trip(tmp_path):
    (tmp_path / "point.json").write_bytes(to_json(Point(x=3)))
    assert read_json(tmp_path / "point.json", Point) == Point(x=3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"x": "three"}', r"point.json is damaged: Expected `int`, got `str` - at `\$.x`"),
        (b'{"x": 1, "y": 2}', "unknown field `y`"),
        (b'{"x": 1', "point.json is damaged"),
    ],
)
def test_damage_is_named(tmp_path, content, message):
    path = tmp_path / "point.json"
    path.write_bytes(content)
    with pytest.raises(SearchError, match=message):
        read_json(path, Point)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(SearchError, match=r"point.json does not exist.*lathe search"):
        read_json(tmp_path / "point.json", Point)
