"""Run any method: its directory, phases, seeds of every epoch, checkpoints, and the result, which is written last.

The same call resumes an interrupted run and leaves the same bytes as an uninterrupted one. For this, every epoch uses
generators seeded by its number, and is saved to a single file before it is reported.
"""

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import Struct
from torch import nn
from torch.optim import Optimizer

from latency.files import sha256, write_atomically
from reparam import count, fuse, squeeze
from reparam.typed_torch import fork_rng, manual_seed
from search import board, checkpoint, finished, record
from search.architecture import Architecture, OtherDevice, keys, load_architecture
from search.drop_path import drop_path
from search.ema import WeightAverage
from search.errors import SearchError
from search.files import to_json
from search.method import Epoch, Method, Phase
from search.methods.settings import UNPRUNED
from search.network import load_weights, save_weights
from search.record import (
    Chosen,
    EpochDone,
    Event,
    Finished,
    NetworkResult,
    OtherBudget,
    Result,
    Run,
    Started,
    Usage,
    open_run,
)
from search.runtime import TrainingRuntime
from search.space import Choice
from search.task import Task
from search.train import Evaluation, evaluate, train_epoch

EVALUATION_BATCH = 256


def run(method: Method[Any], out: Path, *, baseline: Path | None = None) -> Iterator[Event]:
    """Start or resume a method's run; write its progress and its result to a directory.

    Args:
        method: the method with its settings and problem; a new object even when resuming.
        out: the run's directory.
        baseline: directory of another run of the same space, whose first phase is used instead of running an own one.

    Yields:
        Events as they happen, ending with `Finished`.

    Raises:
        SearchError: the directory holds something else, the baseline cannot be used, or the training diverges.
        ReparamError: the network cannot be read, fused or squeezed; the message names the node.
    """
    problem = method.problem
    start = _Start(method, baseline)
    runtime = TrainingRuntime(method.settings.devices, method.settings.train_precision, method.settings.memory_format)
    described = Run(
        method=method.name,
        settings=msgspec.to_builtins(method.settings),
        space=problem.space.record(),
        budget_us=problem.budget.us,
        budget_macs=problem.budget.macs,
        table_sha256=problem.table.sha256 if problem.table else "",
        also=tuple(
            OtherBudget(table_sha256=other.table.sha256, budget_us=other.budget.amount) for other in problem.also
        ),
        data=problem.task.name,
        data_sha256=problem.task.sha256(),
        metric=problem.task.metric,
        baseline_sha256=start.sha256,
        teacher_sha256=_teacher_sha256(method),
        versions={name: importlib.metadata.version(name) for name in ("torch", "lightning-fabric", "numpy")},
    )
    run_sha256 = open_run(out, described) if runtime.rank == 0 else ""
    runtime.wait()
    if (out / record.RESULT).exists():
        yield Finished(
            architecture=load_architecture(out / record.ARCHITECTURE),
            result=record.read_result(out, record.read_run(out)),
        )
    else:
        yield from _Session(method, out, start, run_sha256, runtime).run()


class _Start:
    """The start of a run: a new network, or a trained one of another run, which then replaces the shared phases."""

    def __init__(self, method: Method[Any], baseline: Path | None) -> None:
        self.phases = method.phases
        self.path = baseline and baseline / record.BASELINE
        self.sha256 = ""
        if self.path:
            if not self.path.exists():
                raise SearchError(f"{self.path} does not exist: give the directory of a run whose first phase is over")
            self.trained(method)  # raises if it belongs to another space
            self.sha256 = sha256(self.path)
            self.phases = tuple(phase for phase in self.phases if not _is_shared(phase))

    def trained(self, method: Method[Any]) -> nn.Module | None:
        """Return the trained network to start from; None if the first phase creates its own."""
        return None if self.path is None else _first_network(method, self.path)


class _Head(Struct, frozen=True, kw_only=True):
    """The head of a checkpoint."""

    history: tuple[EpochDone, ...]
    method: dict[str, Any]


class _Session:
    """A run in progress."""

    def __init__(
        self, method: Method[Any], out: Path, start: _Start, run_sha256: str, runtime: TrainingRuntime
    ) -> None:
        self.method, self.problem, self.out, self.start, self.run_sha256 = (
            method,
            method.problem,
            out,
            start,
            run_sha256,
        )
        self.runtime = runtime
        self.history: tuple[EpochDone, ...] = ()
        self.usage: tuple[Usage, ...] = ()
        self.network: nn.Module | None = None

    def run(self) -> Iterator[Event]:
        """Run all remaining phases, then write the result."""
        begin, states = 0, None
        if (self.out / record.CHECKPOINT).exists():
            head, states = checkpoint.load(self.out / record.CHECKPOINT, _Head)
            self.history = head.history
            done = {(epoch.phase, epoch.epoch) for epoch in head.history}
            self.usage = tuple(usage for usage in record.read_usage(self.out) if (usage.phase, usage.epoch) in done)
            with checkpoint.fitting(self.out / record.CHECKPOINT):
                begin = [phase.name for phase in self.start.phases].index(self.history[-1].phase)
                self.method.restore(head.method)
        else:
            self.network = self.start.trained(self.method)
        epochs = {phase.name: phase.epochs for phase in self.start.phases}
        yield Started(epochs=epochs, history=self.history, metric=self.problem.task.metric)
        for phase in self.start.phases[begin:]:
            yield from self._phase(phase, states)
            states = None
        if self.runtime.rank == 0:
            yield self._finish()

    def _phase(self, phase: Phase, states: dict[str, Any] | None) -> Iterator[Event]:
        """Run a phase, from its start or from the states of a checkpoint."""
        if states is None:
            self._keep_baseline(phase)
            if self.network is not None:
                self.network.cpu()
        with _seeded(self.method.settings.seed):
            self.network = network = self.method.network(phase, self.network)
        if states is None and phase.rewinds:
            unpruned = _first_network(self.method, self.out / record.BASELINE).state_dict()
            network.load_state_dict({name: unpruned.get(name, value) for name, value in network.state_dict().items()})
        if states is None and phase.decides:
            choice = self.method.choice()
            yield Chosen(choice=choice, latency=self.problem.latency(choice))
        teacher = self._teacher() if phase.distils and self.method.settings.distill != "none" else None
        optimizers = self.method.optimizers(phase, network)
        wrapped, wrapped_optimizers = self.runtime.setup(network, optimizers)
        if states is not None:
            with checkpoint.fitting(self.out / record.CHECKPOINT):
                network.load_state_dict(states["network"])
                for index, optimizer in enumerate(optimizers):
                    checkpoint.restore_optimizer(optimizer, states[f"optimizer{index}"])
        average = (
            None
            if phase.batch_statistics or not self.method.settings.ema
            else WeightAverage(network, self.method.settings.ema)
        )
        if states is not None:
            with checkpoint.fitting(self.out / record.CHECKPOINT):
                self.runtime.load_state_dict(states["runtime"])
                if average:
                    average.load_state_dict(states["average"])
        for index in range(self.history[-1].epoch if states is not None else 0, phase.epochs):
            self._epoch(phase, index, wrapped, wrapped_optimizers, average, teacher)
            if self.runtime.rank == 0:
                self._save(optimizers, average)
            yield self.history[-1]
        if average:
            average.finish()

    def _keep_baseline(self, phase: Phase) -> None:
        """Save the network of the shared phases, from which other runs can start, before the next phase changes it."""
        path = self.out / record.BASELINE
        is_due = _is_shared(self.method.phases[0]) and not _is_shared(phase)
        if self.runtime.rank == 0 and self.network is not None and is_due and not path.exists():
            save_weights(self.network, path, {"run_sha256": self.run_sha256})
        self.runtime.wait()

    def _teacher(self) -> nn.Module:
        """Return the network to distil from."""
        teacher = self.method.settings.teacher
        network = (
            _first_network(self.method, self.out / record.BASELINE)
            if teacher == UNPRUNED
            else finished.load(teacher).network()
        )
        return self.runtime.frozen(network)

    def _epoch(
        self,
        phase: Phase,
        index: int,
        wrapped: nn.Module,
        optimizers: Sequence[Optimizer],
        average: WeightAverage | None,
        teacher: nn.Module | None,
    ) -> None:
        name = f"{self.method.settings.seed}/{phase.name}/{index}"
        epoch = Epoch(
            phase=phase, index=index, order=_generator(name), noise=_generator(f"{name}/noise"), teacher=teacher
        )
        assert self.network is not None
        rate = 0.0 if phase.batch_statistics else self.method.settings.drop_path
        noise = _generator(f"{name}/branches")
        branches = drop_path(
            self.network, self.problem.example, rate, noise, rank=self.runtime.rank, ranks=self.runtime.ranks
        )
        stepped = average.update if average else lambda: None
        with _seeded(_seed(f"{name}/dropout")), branches:
            parts = self.method.parts(epoch, self.network, optimizers)
            trained = train_epoch(wrapped, parts, task=self.method.task(phase), runtime=self.runtime, stepped=stepped)
        figures = self.method.ended(epoch, self.network)
        with average.in_place() if average else contextlib.nullcontext():
            evaluated = self._evaluated(wrapped, self.method.task(phase), batch_statistics=phase.batch_statistics)
        shippable = self.method.shippable()
        latency = self.problem.latency(shippable)
        done = EpochDone(
            phase=phase.name,
            epoch=index + 1,
            epochs=phase.epochs,
            loss=trained.loss,
            train_score=trained.score,
            score=evaluated.score,
            score_error=evaluated.error,
            choice=self.method.choice(),
            latency_us=latency and latency.us,
            macs=self.problem.macs(shippable),
            figures=figures,
        )
        self.history = (*self.history, done)
        usage = Usage(
            phase=phase.name,
            epoch=index + 1,
            steps=trained.steps,
            seconds=trained.seconds,
            saved_bytes=trained.saved_bytes,
        )
        self.usage = (*self.usage, usage)

    def _evaluated(self, network: nn.Module, task: Task, *, batch_statistics: bool = False) -> Evaluation:
        batches = task.held_out_batches(EVALUATION_BATCH)
        return evaluate(network, batches, task=task, runtime=self.runtime, batch_statistics=batch_statistics)

    def _save(self, optimizers: Sequence[Optimizer], average: WeightAverage | None) -> None:
        assert self.network is not None
        record.write_history(self.out, self.history)
        record.write_usage(self.out, self.usage)
        write_atomically(self.out / record.CSV, board.csv_of(self.history, self.problem.task.metric))
        states = {f"optimizer{index}": optimizer.state_dict() for index, optimizer in enumerate(optimizers)}
        if average:
            states["average"] = average.state_dict()
        states["runtime"] = self.runtime.state_dict()
        head = _Head(history=self.history, method=self.method.state())
        checkpoint.save(self.out / record.CHECKPOINT, head, {"network": self.network.state_dict(), **states})

    def _finish(self) -> Finished:
        """Write architecture and weights, then the result, which marks the run as complete."""
        assert self.network is not None
        problem, choice = self.problem, self.method.choice()
        unpruned = self._unpruned_result()
        header = problem.table and problem.table.header
        architecture = Architecture(
            space=problem.space.record(),
            choice=choice,
            blocks=keys(problem.space, choice),
            labels=problem.task.labels,
            preprocessing=problem.task.preprocessing,
            data=problem.task.name,
            predicted=problem.latency(choice),
            budget_us=problem.budget.us,
            device=header and header.device,
            runtime=header and header.runtime,
            table_sha256=problem.table.sha256 if problem.table else "",
            batch=header.batch if header else 1,
            also=self._other_devices(choice),
            method=self.method.name,
            seed=self.method.settings.seed,
            options=msgspec.to_builtins(self.method.settings),
        )
        write_atomically(self.out / record.ARCHITECTURE, to_json(architecture))
        save_weights(self.network, self.out / record.WEIGHTS, {"architecture_sha256": architecture.sha256})
        result = Result(
            run_sha256=self.run_sha256,
            architecture_sha256=architecture.sha256,
            weights_sha256=sha256(self.out / record.WEIGHTS),
            metric=problem.task.metric,
            held_out_samples=len(problem.task.held_out),
            budget_us=problem.budget.us,
            budget_macs=problem.budget.macs,
            unpruned=unpruned,
            shipped=self._result(self.network, choice, _score_of(self.history[-1])),
            free_channels=self.method.free_channels(),
        )
        write_atomically(self.out / record.RESULT, to_json(result))
        return Finished(architecture=architecture, result=result)

    def _other_devices(self, choice: Choice) -> tuple[OtherDevice, ...]:
        """Return the latencies of the network on further devices."""
        space = self.problem.space
        blocks, unpruned = space.network(choice), space.network(space.largest())
        return tuple(
            OtherDevice(
                device=table.header.device,
                runtime=table.header.runtime,
                table_sha256=table.sha256,
                budget_us=budget.amount,
                predicted=table.predict(blocks),
                largest=table.predict(unpruned),
            )
            for table, budget in self.problem.also
        )

    def _unpruned_result(self) -> NetworkResult | None:
        """Return the result of the network that the search started from; None if the method trains none."""
        first = self.method.phases[0]
        if not first.unpruned:
            return None
        network = _first_network(self.method, self.out / record.BASELINE)
        scores = [_score_of(done) for done in self.history if done.phase == first.name]
        if not scores:
            assert self.network is not None
            network.to(next(self.network.parameters()).device)
            evaluated = self._evaluated(network, self.problem.task)
            scores = [(evaluated.score, evaluated.error)]
        return self._result(network, self.problem.space.largest(), scores[-1])

    def _result(self, network: nn.Module, choice: Choice, scored: tuple[float, float]) -> NetworkResult:
        size = count(squeeze(fuse(network.cpu(), self.problem.example), self.problem.example), self.problem.example)
        latency = self.problem.latency(choice)
        score, error = scored
        return NetworkResult(
            choice=choice, score=score, score_error=error, parameters=size.params, macs=size.macs, predicted=latency
        )


def _score_of(done: EpochDone) -> tuple[float, float]:
    """Return score and standard error of an epoch."""
    assert done.score_error is not None, "only earlier versions have none"
    return done.score, done.score_error


def _first_network(method: Method[Any], path: Path) -> nn.Module:
    """Return the network of the first phase with the weights of a file."""
    with _seeded(method.settings.seed):
        network = method.network(method.phases[0], None)
    load_weights(network, path, {})
    return network


def _is_shared(phase: Phase) -> bool:
    """Return whether another run can start from the end of a phase."""
    return phase.unpruned or phase.shared


def _teacher_sha256(method: Method[Any]) -> str:
    """Return the hash of the weights of a teacher from another run; "" if there is none.

    Raises:
        SearchError: there is no unpruned network to distil from, or the teacher was trained on other images.
    """
    settings, task, space = method.settings, method.problem.task, method.problem.space
    if settings.distill == "none":
        return ""
    if settings.teacher == UNPRUNED:
        if not any(phase.unpruned for phase in method.phases):
            raise SearchError(
                f"{method.name} trains no unpruned network to distil from: give --teacher the directory of a run"
            )
        return ""
    teacher = finished.load(settings.teacher).architecture
    if (teacher.labels, teacher.preprocessing) != (
        task.labels,
        task.preprocessing,
    ) or teacher.input_shape != space.input_shape:
        raise SearchError(
            f"--teacher {settings.teacher} was trained on {teacher.data}, which has other classes or images than "
            f"{task.name}"
        )
    return sha256(Path(settings.teacher) / record.WEIGHTS)


def _seed(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])


def _generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(name))


@contextlib.contextmanager
def _seeded(seed: int) -> Generator[None, None, None]:
    """Seed torch's global state within the context and restore it afterwards."""
    with fork_rng():
        manual_seed(seed)
        yield
