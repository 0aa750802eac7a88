import pytest
import torch

from search import SearchError, finished


@torch.no_grad()
def accuracy(network, data) -> float:
    network.eval()
    return (network(data.normalise(data.held_out.images)).argmax(1) == data.held_out.labels).float().mean().item()


def test_a_finished_run_is_loaded_with_its_networks(search_into, tmp_path, stripes):
    *_, last = search_into(tmp_path / "run", pretrain_epochs=1, search_epochs=1, finetune_epochs=1)
    found = finished.load(tmp_path / "run")
    assert (found.result, found.architecture) == (last.result, last.architecture)
    assert found.run.method == "pas"
    assert len(found.history) == 3
    assert accuracy(found.network(), stripes) == pytest.approx(found.result.shipped.score)
    assert accuracy(found.unpruned(), stripes) == pytest.approx(found.result.unpruned.score)


def test_what_is_not_finished_is_refused(search_into, tmp_path):
    with pytest.raises(SearchError, match="run.json does not exist: give the directory of a finished search"):
        finished.load(tmp_path)
    next(iter(search_into(tmp_path / "run")))
    with pytest.raises(SearchError, match="result.json does not exist: give the directory of a finished search"):
        finished.load(tmp_path / "run")


def test_weights_of_another_run_are_refused(search_into, tmp_path):
    for seed in (0, 1):
        list(
            search_into(
                tmp_path / str(seed), "uniform", seed=seed, pretrain_epochs=1, search_epochs=1, finetune_epochs=1
            )
        )
    (tmp_path / "1" / "weights.safetensors").replace(tmp_path / "0" / "weights.safetensors")
    with pytest.raises(
        SearchError, match=r"weights.safetensors was changed after the search: result.json names the sha256"
    ):
        finished.load(tmp_path / "0").network()


@pytest.mark.parametrize(("name", "of"), [("result.json", b'"shipped":'), ("history.jsonl", b'"choice":')])
def test_a_network_of_another_space_is_refused(search_into, tmp_path, name, of):
    list(search_into(tmp_path / "run", "uniform", pretrain_epochs=1, search_epochs=1, finetune_epochs=1))
    file = tmp_path / "run" / name
    head, found, rest = file.read_bytes().partition(of)
    assert found
    group = next(iter(finished.load(tmp_path / "run").result.shipped.choice.widths)).encode()
    file.write_bytes(head + found + rest.replace(b'"%s"' % group, b'"strange"', 1))
    with pytest.raises(
        SearchError,
        match=rf"{name} was changed after the search: .*(a choice has a width for each|to choose at strange)",
    ):
        finished.load(tmp_path / "run")
