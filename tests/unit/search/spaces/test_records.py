import random

import msgspec
import pytest
import torch

from search import SearchError, spaces
from search.spaces import from_record


@pytest.mark.parametrize(
    "name", ["repvgg-mini", "prunet-cifar", "gpunet-0", "repvgg-b1-g4", "nasbench201-small", "resnet20/widths"]
)
def test_a_space_comes_back_from_its_record(name):
    space = spaces.get(name)
    record = msgspec.json.decode(msgspec.json.encode(space.record()))
    again = from_record(record)
    assert again == space
    assert next(iter(record)) == "kind"
    choice = space.random(random.Random(0))
    assert again.network(choice) == space.network(choice)


def test_widths_of_a_named_network_have_their_module_and_those_of_ones_own_ask_for_it():
    space = spaces.get("resnet20/widths")
    assert isinstance(from_record(space.record()).module(space.smallest()), torch.nn.Module)
    own = from_record({**space.record(), "name": "mine"})
    assert own.network(own.smallest()) == space.network(space.smallest())
    with pytest.raises(
        SearchError, match=r"'mine' is of a module of your own: give it, as in architecture.build\(module\)$"
    ):
        own.module()
    assert from_record({**space.record(), "name": "mine"}, make=space.unpruned).module(space.smallest())(
        torch.zeros(1, 3, 32, 32)
    ).shape == (1, 10)


def test_a_record_without_its_layers_says_so():
    space = spaces.get("resnet20/widths")
    with pytest.raises(
        SearchError,
        match=r"^the layers of resnet20/widths are not recorded: make the space again with spaces.of_module",
    ):
        from_record({**space.record(), "places": []}).network()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kind": "maze"},
            r"^the record of a space has the kind 'maze': known are cells, chain, fixed, free, layered, staged, traced",
        ),
        (
            {"classes": "two"},
            r"^the record of a space of the kind chain is damaged: Expected `int`, got `str` - at `\$.classes`",
        ),
        (
            {"colour": "red"},
            r"^the record of a space of the kind chain is damaged: field colour is not what it is written as$",
        ),
    ],
)
def test_damaged_records_are_refused(change, message):
    with pytest.raises(SearchError, match=message):
        from_record({**spaces.get("repvgg-mini").record(), **change})


def test_damaged_keys_and_missing_fields_are_refused():
    record = spaces.get("gpunet-0").record()
    with pytest.raises(
        SearchError,
        match=r"^the record of a space of the kind fixed is damaged: block key 'conv' is not|block key 'conv': expected",
    ):
        from_record({**record, "sequence": ["conv"]})
    with pytest.raises(SearchError, match=r"kind fixed is damaged: 'sequence'"):
        from_record({name: value for name, value in record.items() if name != "sequence"})


def test_stages_come_back_from_their_record(staged):
    record = msgspec.json.decode(msgspec.json.encode(staged.record()))
    again = from_record(record)
    assert (again.stages, again.network(again.smallest())) == (staged.stages, staged.network(staged.smallest()))
    assert (
        "stages"
        not in spaces.of_module(
            torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 4, 1)), torch.zeros(1, 3, 4, 4), name="own"
        ).record()
    )
    with pytest.raises(SearchError, match=r"kind staged is damaged: stage stage1 has the site 99, of 8$"):
        from_record(
            {
                **record,
                "stages": [
                    {"name": "stage1", "blocks": [{"module": "1", "sites": [1]}, {"module": "2", "sites": [99]}]}
                ],
            }
        )
