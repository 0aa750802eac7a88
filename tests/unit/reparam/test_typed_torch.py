import torch

from reparam.typed_torch import to_list


def test_elements_keep_their_nesting():
    assert to_list(torch.tensor([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]
    assert to_list(torch.tensor([True, False])) == [True, False]


def test_the_last_part_may_be_smaller():
    assert [to_list(part) for part in torch.split(torch.arange(5), 2)] == [[0, 1], [2, 3], [4]]
