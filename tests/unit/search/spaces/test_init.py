import pytest

from search import SearchError, spaces


def test_every_name_is_a_space_of_that_name():
    assert [spaces.get(name).name for name in spaces.names()] == list(spaces.names())


def test_repvgg_mini():
    space = spaces.get("repvgg-mini")
    assert space.size() == 2 * 4 * 4 * 8 * 8 * 16 * 16
    assert [(layer.width, layer.stride) for layer in space.layers] == [
        (16, 1),
        (32, 2),
        (32, 1),
        (64, 2),
        (64, 1),
        (128, 2),
        (128, 1),
    ]
    assert (space.input_shape, space.classes) == ((3, 32, 32), 10)


def test_classes_and_resolution_can_be_chosen():
    space = spaces.get("repvgg-mini", classes=3, resolution=48)
    assert (space.classes, space.input_shape) == (3, (3, 48, 48))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("net.onnx", {}, "net.onnx is an ONNX file, not a space: `lathe predict` and `lathe export` take it"),
        ("repvgg-nano", {}, "unknown space 'repvgg-nano': try repvgg-"),
        ("repvgg-mini", {"classes": 1}, "at least 2 classes, found 1"),
        ("repvgg-mini", {"classes": 10**12}, "at most 1,000,000 classes here, found 1000000000000"),
        ("repvgg-mini", {"resolution": 10**6}, "at most 65,536 pixels along a side here, found 1000000"),
        ("repvgg-mini", {"resolution": 4}, "at least 8, found 4"),
    ],
)
def test_bad_spaces_are_refused(name, options, message):
    with pytest.raises(SearchError, match=message):
        spaces.get(name, **options)


@pytest.mark.parametrize(
    ("official", "name"),
    [
        ("RepVGG-B1g4", "repvgg-b1-g4"),
        ("repvgg_b1g4", "repvgg-b1-g4"),
        ("GPUNet-P0", "gpunet-p0"),
        ("resnet50", "resnet-50"),
        ("ResNet-20/widths", "resnet20/widths"),
    ],
)
def test_official_names_are_understood(official, name):
    assert spaces.canonical(official) == name
    assert spaces.get(official).name == name


def test_no_two_names_differ_by_capitals_and_separators_alone():
    assert [spaces.canonical(name) for name in spaces.names()] == list(spaces.names())


def test_an_unknown_name_stays_as_it_was_written():
    with pytest.raises(SearchError, match=r"^unknown space 'Nothing-1': list all by `lathe space --list`$"):
        spaces.get("Nothing-1")
