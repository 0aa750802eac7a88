import pytest
import torch
from torch import nn

from search.ema import WeightAverage


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def moved(network: nn.Module) -> dict[str, torch.Tensor]:
    """The network one step on; what it is then."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))
        network(torch.randn(8, 3))  # moves the running statistics
    return {name: value.clone() for name, value in network.state_dict().items()}


def expected(states: list[dict[str, torch.Tensor]], decay: float) -> dict[str, torch.Tensor]:
    averages = dict(states[0])
    for n, state in enumerate(states[1:], 1):
        d = min(decay, (1 + n) / (10 + n))
        averages = {
            name: d * averages[name] + (1 - d) * value if value.is_floating_point() else value
            for name, value in state.items()
        }
    return averages


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_is_the_recurrence(network, decay):
    states = [{name: value.clone() for name, value in network.state_dict().items()}]
    average = WeightAverage(network, decay)
    for _ in range(5):
        states.append(moved(network))
        average.update()
    with average.in_place():
        for name, value in network.state_dict().items():
            torch.testing.assert_close(value, expected(states, decay)[name])
    assert all(torch.equal(value, states[-1][name]) for name, value in network.state_dict().items())
    average.finish()
    torch.testing.assert_close(network.state_dict(), expected(states, decay))


def test_the_weights_come_back_after_an_error(network):
    average = WeightAverage(network, 0.9)
    now = moved(network)
    with pytest.raises(RuntimeError), average.in_place():
        raise RuntimeError
    assert all(torch.equal(value, now[name]) for name, value in network.state_dict().items())


def test_a_restored_average_goes_on_alike(network):
    one = WeightAverage(network, 0.9)
    moved(network)
    one.update()
    state = {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in one.state_dict().items()
    }
    other = WeightAverage(network, 0.9)
    other.load_state_dict(state)
    moved(network)
    for average in (one, other):
        average.update()
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)
    with pytest.raises(KeyError):
        WeightAverage(nn.Linear(3, 4), 0.9).load_state_dict(state)
