import pytest
import torch
from torch import nn

from search import SearchError
from search.network import load_weights, save_weights


def test_blocks_have_the_widths_and_strides_of_the_layers(tiny):
    network = tiny.module()
    assert [(b.dense.conv.in_channels, b.dense.conv.out_channels, b.dense.conv.stride[0]) for b in network[:3]] == [
        (3, 32, 1),
        (32, 32, 2),
        (32, 32, 1),
    ]
    assert network(torch.zeros(2, 3, 8, 8)).shape == (2, 2)


def test_weights_come_back_with_what_they_were_made_from(tiny, tmp_path):
    torch.manual_seed(0)
    network, other = tiny.module(), tiny.module()
    save_weights(network, tmp_path / "w.safetensors", {"architecture_sha256": "ab"})
    load_weights(other, tmp_path / "w.safetensors", {"architecture_sha256": "ab"})
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True)
    )


def test_weights_of_something_else_are_refused(tiny, tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(nn.Linear(2, 2), path, {"architecture_sha256": "ab"})
    network = tiny.module()
    with pytest.raises(SearchError, match="has architecture_sha256 ab, wanted cd: the file belongs to another network"):
        load_weights(network, path, {"architecture_sha256": "cd"})
    with pytest.raises(SearchError, match="does not fit the network"):
        load_weights(network, path, {})
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(SearchError, match=r"w.safetensors is not a safetensors file"):
        load_weights(network, path, {})
    with pytest.raises(SearchError, match=r"none.safetensors does not exist"):
        load_weights(network, tmp_path / "none.safetensors", {})


def test_weights_that_are_not_finite_are_refused(tiny, tmp_path):
    network = tiny.module()
    with torch.no_grad():
        network.head[-1].bias[1] = float("nan")
    save_weights(network, tmp_path / "w.safetensors", {})
    with pytest.raises(SearchError, match=r"w.safetensors: head.*bias has a value that is not a finite number"):
        load_weights(network, tmp_path / "w.safetensors", {})
