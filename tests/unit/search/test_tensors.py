import pytest
import torch

from search import SearchError
from search.tensors import read_tensors, write_tensors


def test_any_layout_comes_back_with_its_values(tmp_path):
    tensors = {
        "last": torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "view": torch.arange(12).view(3, 4).t(),
        "keep": torch.tensor([True, False]),
        "count": torch.tensor(7),
    }
    write_tensors(tmp_path / "t.safetensors", tensors, {"from": "here"})
    found, metadata = read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"from": "here"}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) and found[name].dtype == tensors[name].dtype for name in tensors)


def test_a_damaged_or_missing_file_is_named(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(SearchError, match=r"t.safetensors does not exist: run `lathe search` again"):
        read_tensors(path)
    write_tensors(path, {"a": torch.rand(100)}, {})
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(SearchError, match=r"t.safetensors is not a safetensors file \(.*run `lathe search` again"):
        read_tensors(path)
