"""Train one epoch, and evaluate; methods define what to train and with which loss."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from reparam.typed_torch import to_list
from search.errors import SearchError
from search.runtime import TrainingRuntime
from search.task import Batch, Loss, Task, Tree


@runtime_checkable
class Stream(Protocol):
    """An iterable of batches with a known length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...


@dataclass(frozen=True, kw_only=True)
class TrainingPart:
    """A part of an epoch: parameters to train, with their own samples and loss."""

    optimizers: Sequence[Optimizer]
    """optimizers that step together, as returned by `TrainingRuntime.setup`; every parameter group has its full
    learning rate as `peak_lr`, which is not scaled if the group's `scheduled` is False"""
    batches: Stream
    """batches of all devices together"""
    loss: Loss
    """the loss, including penalties"""
    factor: Callable[[int], float]
    """maps a step of the epoch to the factor on the learning rates"""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss and metric of a network, with the usage of a training epoch."""

    loss: float
    """mean loss, including penalties"""
    score: float
    """the task's metric"""
    error: float = 0.0
    """standard error of the metric; 0 in training, where the network changes with every step"""
    steps: int = 0
    """number of training steps; 0 in evaluation, like the fields below"""
    seconds: float = 0.0
    """time of all steps, including loading of samples"""
    saved_bytes: int = 0
    """largest size that a forward pass saves for the backward pass, on this device"""


def make_optimizer(
    network: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    policy: Iterable[nn.Parameter] = (),
    policy_lr: float = 0.0,
) -> SGD:
    """Create an SGD optimizer with momentum.

    Weights are decayed; biases, norms and the policy are not, since decay would move a policy towards its threshold
    regardless of the loss. Every parameter group has its full learning rate as `peak_lr`; see `train_epoch`.
    """
    policy = list(policy)
    policy_ids = {id(parameter) for parameter in policy}
    others = [parameter for parameter in network.parameters() if id(parameter) not in policy_ids]
    groups = weight_groups(others, lr=lr, weight_decay=weight_decay)
    if policy:
        groups.append({"params": policy, "weight_decay": 0.0, "peak_lr": policy_lr})
    return SGD(groups, lr=lr, momentum=momentum)


def weight_groups(parameters: Sequence[nn.Parameter], *, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return an optimizer's parameter groups: decayed weights, then biases and norms without decay."""
    return [
        {
            "params": [parameter for parameter in parameters if parameter.ndim > 1],
            "weight_decay": weight_decay,
            "peak_lr": lr,
        },
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0, "peak_lr": lr},
    ]


def interleaved(counts: Sequence[int]) -> Iterator[int]:
    """Interleave the steps of several parts evenly, so that all end together; equal parts alternate.

    Args:
        counts: number of steps of each part.

    Yields:
        Index of the part that takes the next step.
    """
    steps = [((2 * step + 1) / (2 * count), part) for part, count in enumerate(counts) for step in range(count)]
    return (part for _, part in sorted(steps))


def train_epoch(
    network: nn.Module,
    parts: Sequence[TrainingPart],
    *,
    task: Task,
    runtime: TrainingRuntime,
    stepped: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Train on every batch of every part once, in the order of `interleaved`.

    Args:
        network: the network, as returned by `TrainingRuntime.setup`.
        parts: what to train.
        task: defines the metric.
        runtime: the devices.
        stepped: called after every step.

    Returns:
        Loss and metric over all parts.

    Raises:
        SearchError: the loss or the metric is not finite, or a batch cannot be divided among the devices.
    """
    network.train()
    total, figures, shown, steps = 0.0, torch.zeros(1), 0, 0
    start, saved, own = time.perf_counter(), 0, 0
    left = [enumerate(part.batches) for part in parts]
    for index in interleaved([len(part.batches) for part in parts]):
        part, (step, batch) = parts[index], next(left[index])
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in part.optimizers):
            group["lr"] = group["peak_lr"] * (part.factor(step) if group.get("scheduled", True) else 1.0)
        inputs, targets = (runtime.send(runtime.share(part)) for part in batch)
        with _saved_sizes(network) if step == 0 else contextlib.nullcontext([]) as kept:
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
    sums: list[float] = to_list(figures)
    total, shown, steps, *figures = runtime.total(total, shown, steps, *sums)
    if not math.isfinite(total):
        raise SearchError(
            f"training diverged (loss {total}): start again in a new directory with a lower learning rate"
        )
    score = task.value(torch.tensor(figures, dtype=torch.float64) / max(1, shown)).item()
    return Evaluation(
        loss=total / max(1, steps), score=task.require_finite(score), steps=own, seconds=seconds, saved_bytes=saved
    )


@contextlib.contextmanager
def _saved_sizes(network: nn.Module) -> Generator[list[int], None, None]:
    """Yield a list of the sizes in bytes that a forward pass saves for the backward pass.

    Each storage once, without the network's own.
    """
    sizes: list[int] = []
    seen = {value.untyped_storage().data_ptr() for value in (*network.parameters(), *network.buffers())}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            sizes.append(storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    task: Task,
    runtime: TrainingRuntime,
    batch_statistics: bool = False,
) -> Evaluation:
    """Return loss and metric in evaluation mode.

    Args:
        network: the network, as returned by `TrainingRuntime.setup`.
        batches: batches of samples.
        task: their task.
        runtime: the devices.
        batch_statistics: use batch statistics in norms. Running statistics average over the last few dozen steps, so
            they fit no network if channels change at every step.
    """
    network.eval()
    with by_batch_statistics(network) if batch_statistics else contextlib.nullcontext():
        sent = ((runtime.send(inputs), runtime.send(targets)) for inputs, targets in batches)
        return evaluation(partial(runtime.forward, network), sent, task)


@torch.no_grad()
def evaluation(forward: Callable[[Tensor], Tree], batches: Iterable[Batch], task: Task) -> Evaluation:
    """Return loss and metric of the outputs of `forward` on some batches, which are already on its device."""
    total, rows = 0.0, list[Tensor]()
    for inputs, targets in batches:
        outputs = forward(inputs)
        total += task.loss(outputs, targets).item() * len(inputs)
        rows.append(task.statistics(outputs, targets).cpu())
    score, error = task.judged(torch.cat(rows))
    return Evaluation(loss=total / sum(map(len, rows)), score=score, error=error)


@contextlib.contextmanager
def by_batch_statistics(network: nn.Module) -> Generator[None, None, None]:
    """Within the context, norms of a network in evaluation mode use batch statistics.

    Their running statistics are not updated.
    """
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
