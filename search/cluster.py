"""Run `lathe` commands as tasks of an existing Ray cluster, which places them and restarts those whose node is lost."""

import contextlib
import ctypes
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latency.errors import import_extra, one_line
from search.errors import SearchError
from search.processes import command_of, environment

Task = Callable[..., int]
"""A function importable on every node; returns an exit code."""


class Cluster:
    """A connection to an existing cluster, as a context manager; tasks still running at its end are stopped.

    Every node must have the same installation of `lathe`, and the directories that the tasks use at the same paths.

    Args:
        address: address for `ray.init`; None means the cluster that this machine belongs to.

    Raises:
        MissingExtra: Ray is not installed.
        SearchError: there is no such cluster.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray: Any = import_extra("ray", "ray")
        try:
            self._ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = f"at {address}" if address else "that this machine is a node of"
            raise SearchError(
                f"there is no Ray cluster {where} ({one_line(error, 160)}): start one with `ray start --head`"
            ) from error

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def require_resources(self, needs: Mapping[str, float]) -> None:
        """Require a node with the resources of a task, since Ray would wait for one forever.

        Args:
            needs: resources of a task by Ray's names, such as GPU.

        Raises:
            SearchError: no node has enough; the message lists the available resources.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= amount for name, amount in needs.items()) for node in nodes):
            return
        resources = sorted(
            {name for node in nodes for name in node if not name.startswith(("node:", "memory", "object_store"))}
        )
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in needs.items())
        raise SearchError(
            f"no node of the Ray cluster has {wanted}; its nodes have {', '.join(resources)}: ask for these"
        )

    def submit(self, name: str, task: Task, *arguments: Any, needs: Mapping[str, float], after: Any = None) -> Any:
        """Submit a task to Ray, which spreads tasks over the nodes; return a handle for `ended` and `after`.

        Args:
            name: name shown by Ray.
            task: the function to run.
            arguments: its arguments.
            needs: resources of the task, see `require_resources`.
            after: handle of a task that must end first.
        """
        further = {resource: amount for resource, amount in needs.items() if resource not in ("CPU", "GPU")}
        options = {
            "num_cpus": needs.get("CPU", 0),
            "num_gpus": needs.get("GPU", 0),
            "resources": further,
            "scheduling_strategy": "SPREAD",
        }
        return self._ray.remote(_run).options(name=name, **options).remote(after, task, arguments)

    def ended(self, tasks: Mapping[str, Any]) -> Iterator[tuple[str, int, str]]:
        """Yield name, exit code and Ray's error, if any, of each task as it ends."""
        names = {task: name for name, task in tasks.items()}
        while names:
            (done, *_), _ = self._ray.wait(list(names), num_returns=1)
            code, why = 1, ""
            try:
                code = self._ray.get(done)
            except self._ray.exceptions.RayError as error:
                why = one_line(error)
            yield names.pop(done), code, why


def _run(_after: int | None, task: Task, arguments: Sequence[Any]) -> int:
    return task(*arguments)


def run_lathe(words: Sequence[str], log: Path, directory: Path) -> int:
    """Run `lathe` in a subprocess that dies with this process: if this one is killed, Ray restarts the task elsewhere.

    Args:
        words: its command-line arguments.
        log: file that its output is appended to.
        directory: its working directory.
    """
    die_with_parent = None
    if sys.platform == "linux":
        libc, set_parent_death_signal = ctypes.CDLL(None), 1
        die_with_parent = lambda: libc.prctl(set_parent_death_signal, signal.SIGKILL)  # noqa: E731
    with log.open("ab") as output, contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            command_of(words),
            cwd=directory,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent,
        )
        stack.callback(process.kill)
        return process.wait()


def last_words(log: Path, code: int) -> str:
    """Return why a `lathe` command ended: its last message, or its exit code."""
    lines = log.read_text(errors="replace").strip().splitlines()
    messages = [line.removeprefix("lathe: ") for line in lines if line.startswith("lathe: ")] or lines
    return one_line(messages[-1]) if messages else f"ended with exit code {code}"
