from pathlib import Path

import pytest

from search import Choice, SearchError, load_architecture, spaces

HERE = Path(__file__).parent


def test_the_layers_of_a_chain():
    found, space = load_architecture(HERE / "architecture-1-chain.json"), spaces.get("repvgg-mini")
    assert found.schema == "architecture/4"
    assert found.origin() == space
    assert space.widths(found.choice) == (16, 32, 8, 40, 64, 104, 80)
    assert found.network() == space.network(found.choice)
    assert (found.name, found.budget_us, found.method, found.options) == (
        "repvgg-mini",
        12.0,
        "pas",
        {"beta": 0.1, "cost": "latency"},
    )


def test_the_groups_of_a_named_network():
    found, space = load_architecture(HERE / "architecture-1-groups.json"), spaces.get("resnet20/widths")
    assert found.origin() == space
    assert space.widths(found.choice) == (16, 16, 8, 16, 32, 32, 24, 32, 48, 32, 24, 40)
    assert found.network() == space.network(found.choice)


def test_the_groups_of_ones_own_module():
    """The first version did not list the layers of such a network."""
    found, module = load_architecture(HERE / "architecture-1-own.json"), spaces.get("resnet20/widths").module()
    assert isinstance(found.choice, Choice)
    with pytest.raises(SearchError, match="^the layers of own are not recorded"):
        found.network()
    with pytest.raises(SearchError, match="'own' is of a module of your own: give it"):
        found.build()
    assert [name for name, _ in found.build(module).named_children()][-1] == "masks"


def test_layers_of_another_space_are_refused(tmp_path):
    path = tmp_path / "architecture.json"
    path.write_text((HERE / "architecture-1-groups.json").read_text().replace('"of": 64', '"of": 63'))
    with pytest.raises(SearchError, match="its layers are not those of the space resnet20/widths"):
        load_architecture(path)


def test_the_present_version():
    found, space = load_architecture(HERE / "architecture-2.json"), spaces.get("prunet-cifar")
    assert (found.schema, found.origin()) == ("architecture/4", space)
    assert found.network() == space.network(found.choice)


def test_a_network_with_fewer_blocks_than_its_space_has():
    found = load_architecture(HERE / "architecture-2-staged.json")
    space = found.origin()
    assert (space.record()["kind"], space.full_depths()) == ("staged", {"stage1": 3})
    assert found.choice.depths["stage1"] < 3
    assert len(found.network()) == len(space.network()) - 2 * (3 - found.choice.depths["stage1"])
