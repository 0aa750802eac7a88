import pytest
import torch

from search.spaces.cells import EDGES, OPTIONS, Cells, edge
from search.supernet import CellSupernet
from search.train import by_batch_statistics

SPACE = Cells(name="cells", input_shape=(3, 8, 8), classes=2, channels=4, cells=2)


def supernet(weigh=lambda alpha: alpha) -> CellSupernet:
    torch.manual_seed(0)
    return CellSupernet(SPACE, alpha=0.2, weigh=weigh)


@pytest.mark.parametrize("option", range(len(OPTIONS)), ids=OPTIONS)
def test_a_candidate_that_is_removed_is_one_whose_alpha_is_0(option):
    network, x = supernet(), torch.randn(6, 3, 8, 8)
    with torch.no_grad(), by_batch_statistics(network.eval()):
        for index in range(len(EDGES)):
            with network.without(index, option):
                removed = network(x)
            assert torch.equal(removed, network(x)) == (OPTIONS[option] == "none")
            network.alpha[index, option] = 0
            torch.testing.assert_close(removed, network(x), rtol=1e-5, atol=1e-6)
            network.alpha[index, option] = 0.2


def test_a_candidate_can_be_removed_from_one_cell_alone():
    network, x = supernet(), torch.randn(6, 3, 8, 8)
    with torch.no_grad(), by_batch_statistics(network.eval()):
        whole, found = network(x), []
        for cell in network.cells:
            with network.without(0, OPTIONS.index("nor_conv_3x3"), cell=cell):
                found.append(network(x))
        with network.without(0, OPTIONS.index("nor_conv_3x3")):
            found.append(network(x))
        assert torch.equal(network(x), whole)
    assert len(found) == 3 * SPACE.cells + 1
    assert all(
        not torch.equal(one, other) for number, one in enumerate([*found, whole]) for other in [*found, whole][:number]
    )


def test_one_candidate_an_edge_is_the_cell_of_that_choice():
    network, choice = (
        supernet(),
        SPACE.parse("|nor_conv_3x3~0|+|skip_connect~0|nor_conv_1x1~1|+|avg_pool_3x3~0|none~1|nor_conv_3x3~2|"),
    )
    with torch.no_grad():
        network.alpha.fill_(1)
    network.kept.zero_()
    for index, ends in enumerate(EDGES):
        network.kept[index, OPTIONS.index(choice.options[edge(*ends)])] = True
    single = SPACE.module(choice)
    single.stem.load_state_dict(network.body.stem.state_dict())
    single.head.load_state_dict(network.body.head.state_dict())
    for stage in range(3):
        if stage:
            getattr(single, f"reduction{stage}").load_state_dict(
                getattr(network.body, f"reduction{stage}").state_dict()
            )
        for number in range(SPACE.cells):
            mixed, plain = getattr(network.body, f"cell{stage}_{number}"), getattr(single, f"stage{stage}")[number]
            for index, (source, target) in enumerate(EDGES):
                option = choice.options[edge(source, target)]
                if option in mixed.edges[index]:
                    plain.get_submodule(f"edge{source}{target}").load_state_dict(
                        mixed.edges[index][option].state_dict()
                    )
    x = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(network(x), single(x), rtol=1e-5, atol=1e-6)


def test_alphas_and_weights_get_gradients():
    network = supernet()
    network(torch.randn(4, 3, 8, 8)).square().sum().backward()
    none = OPTIONS.index("none")
    assert network.alpha.grad is not None
    assert not network.alpha.grad[:, none].any()
    assert network.alpha.grad[:, [index for index in range(len(OPTIONS)) if index != none]].all()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_dropout_stands_behind_skip_alone():
    network, x = CellSupernet(SPACE, alpha=0.2, weigh=lambda alpha: alpha, skip_dropout=0.9), torch.randn(4, 3, 8, 8)
    assert not torch.equal(network(x), network(x))
    network.kept[:, OPTIONS.index("skip_connect")] = False
    assert torch.equal(network(x), network(x))
