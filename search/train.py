"""One epoch of training, and evaluation; what is trained, and towards what, the methods say."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from search.errors import SearchError
from search.runtime import Runtime
from search.task import Batch, Loss, Task


@runtime_checkable
class Stream(Protocol):
    """Batches whose number is known."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class Part:
    """One of the things that an epoch trains: some parameters, on samples of their own, towards a loss of their own."""

    optimizers: Sequence[Optimizer]
    """that step together, as `Runtime.setup` gave them; every group's full learning rate is its `peak_lr`, which one that is
    not `scheduled` keeps"""
    batches: Stream
    """of all devices together"""
    loss: Loss
    """penalties included"""
    factor: Callable[[int], float]
    """step of the epoch -> factor on the learning rates"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a network did on the samples that it was shown."""

    loss: float
    """mean of the loss, penalties included"""
    score: float
    """the task's metric"""
    error: float = 0.0
    """its standard error; of training, where the network changes with every step, 0"""
    steps: int = 0
    """of training; the same, and none in evaluation, here and below"""
    seconds: float = 0.0
    """of all steps, with the reading of their samples"""
    saved_bytes: int = 0
    """what the forward pass of the largest step keeps for its gradients, on this device"""


def make_optimizer(
    network: nn.Module, *, lr: float, momentum: float, weight_decay: float, policy: Iterable[nn.Parameter] = (), policy_lr: float = 0.0
) -> SGD:
    """Stochastic gradient descent with momentum.

    Weights are decayed; biases, norms and the policy are not: decay would move a policy towards its threshold for no reason of the loss.
    Every group keeps its full learning rate as `peak_lr`; see `train_epoch`.
    """
    policy = list(policy)
    chosen = {id(parameter) for parameter in policy}
    others = [parameter for parameter in network.parameters() if id(parameter) not in chosen]
    groups = weight_groups(others, lr=lr, weight_decay=weight_decay)
    if policy:
        groups.append({"params": policy, "weight_decay": 0.0, "peak_lr": policy_lr})
    return SGD(groups, lr=lr, momentum=momentum)


def weight_groups(parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of an optimizer: weights, which are decayed, then biases and norms, which are not."""
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay, "peak_lr": lr},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0, "peak_lr": lr},
    ]


def turns(counts: Sequence[int]) -> Iterator[int]:
    """In which order parts take their steps: evenly, so that all end together; equal parts take turns.

    Args:
        counts: number of steps of each.

    Yields:
        Index of the part whose turn it is.
    """
    steps = [((2 * step + 1) / (2 * count), part) for part, count in enumerate(counts) for step in range(count)]
    return (part for _, part in sorted(steps))


def train_epoch(
    network: nn.Module, parts: Sequence[Part], *, task: Task, runtime: Runtime, stepped: Callable[[], None] = lambda: None
) -> Evaluation:
    """Show every batch of every part once; see `turns` for their order.

    Args:
        network: as `Runtime.setup` gave it.
        parts: what is trained.
        task: whose metric is taken.
        runtime: where it runs.
        stepped: called after every step.

    Returns:
        The loss and the metric of all parts together.

    Raises:
        SearchError: the loss or the metric is not finite, or a batch cannot be divided among the devices.
    """
    network.train()
    total, figures, shown, steps = 0.0, torch.zeros(1), 0, 0
    start, saved, own = time.perf_counter(), 0, 0
    left = [enumerate(part.batches) for part in parts]
    for index in turns([len(part.batches) for part in parts]):
        part, (step, batch) = parts[index], next(left[index])
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in part.optimizers):
            group["lr"] = group["peak_lr"] * (part.factor(step) if group.get("scheduled", True) else 1.0)
        inputs, targets = (runtime.send(runtime.share(part)) for part in batch)
        with _saved(network) if step == 0 else contextlib.nullcontext([]) as kept:
            outputs = runtime.forward(network, inputs)
        saved = max(saved, sum(kept))
        loss = part.loss(outputs, targets, inputs)
        for optimizer in part.optimizers:
            optimizer.zero_grad()
        runtime.backward(loss)
        for optimizer in part.optimizers:
            optimizer.step()
        stepped()
        total += loss.item()
        with torch.no_grad():
            figures = figures + task.statistics(outputs, targets).sum(0, dtype=torch.float64).cpu()
        shown += len(inputs)
        steps, own = steps + 1, own + 1
    seconds = time.perf_counter() - start
    runtime.agree(network)
    total, shown, steps, *figures = runtime.total(total, shown, steps, *figures.tolist())
    if not math.isfinite(total):
        raise SearchError(f"training diverged (loss {total}): start again in a new directory with a lower learning rate")
    score = task.value(torch.tensor(figures, dtype=torch.float64) / max(1, shown)).item()
    return Evaluation(loss=total / max(1, steps), score=task.require_finite(score), steps=own, seconds=seconds, saved_bytes=saved)


@contextlib.contextmanager
def _saved(network: nn.Module) -> Iterator[list[int]]:
    """Sizes in bytes of the tensors that a forward pass keeps for its gradients, each storage once and without the network's own."""
    found: list[int] = []
    seen = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            found.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@torch.no_grad()
def evaluate(network: nn.Module, batches: Iterable[Batch], *, task: Task, runtime: Runtime, batch_statistics: bool = False) -> Evaluation:
    """Loss and metric in evaluation mode.

    Args:
        network: as `Runtime.setup` gave it.
        batches: of samples.
        task: that they are of.
        runtime: where it runs.
        batch_statistics: let norms use the statistics of each batch. Running ones are averages over the last few dozen steps: where
            channels come and go at every step, they belong to no network.
    """
    network.eval()
    with by_batch_statistics(network) if batch_statistics else contextlib.nullcontext():
        sent = ((runtime.send(inputs), runtime.send(targets)) for inputs, targets in batches)
        return evaluation(partial(runtime.forward, network), sent, task)


@torch.no_grad()
def evaluation(forward: Callable[[Tensor], Any], batches: Iterable[Batch], task: Task) -> Evaluation:
    """Loss and metric of what `forward` makes of the inputs of some batches, which are on its device."""
    total, rows = 0.0, list[Tensor]()
    for inputs, targets in batches:
        outputs = forward(inputs)
        total += task.loss(outputs, targets).item() * len(inputs)
        rows.append(task.statistics(outputs, targets).cpu())
    score, error = task.judged(torch.cat(rows))
    return Evaluation(loss=total / sum(map(len, rows)), score=score, error=error)


@contextlib.contextmanager
def by_batch_statistics(network: nn.Module) -> Iterator[None]:
    """A network in evaluation mode whose norms use the statistics of each batch, and keep their running ones."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train()
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
            norm.eval()
