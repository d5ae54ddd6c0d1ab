"""Workers on a Ray cluster."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from typing import Any

from cgnn.data.engines.crew import Answer, Job, Task
from cgnn.errors import MissingPackageError, WorkerError

_STARTS = 8
"""So many workers in a row that die without having finished anything else than their start mean that none will."""


class RayWorkers:
    """Ray actors, each with the task; one job at a time goes to each.

    A folder of crystals is read where the work is done, so all machines of a cluster must see it under its path.

    Args:
        task: What they do; it is put once into the cluster's store.
        size: Their number; 0 means one for each processor of the cluster.
    """

    def __init__(self, task: Task, size: int) -> None:
        self._ray = ray = _imported()
        self._is_mine = not ray.is_initialized()
        if self._is_mine:
            _start(ray, size)
        self.size = size or int(ray.cluster_resources().get("CPU", 1))
        self._actor = ray.remote(num_cpus=1, max_restarts=0)(_Actor)
        self._task = ray.put(task)
        self._settings = {name: value for name, value in os.environ.items() if name.startswith("CGNN_")}
        self._deaths = 0
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, Job | None]] = {}  # what is awaited -> the actor and its job
        for _ in range(self.size):
            self._add()

    def idle(self) -> int:
        """Return how many workers wait for a job."""
        return len(self._idle)

    def is_ready(self) -> bool:
        """Tell whether any worker has started."""
        return bool(self._idle)

    def give(self, job: Job) -> None:
        """Hand a job to a worker that waits."""
        actor = self._idle.pop()
        self._busy[actor.do.remote(job.method, job.block)] = actor, job

    def finished(self, timeout: float | None = None) -> list[tuple[Job, Answer]]:
        """Wait until something happens and return the jobs that have come to an end.

        Raises:
            WorkerError: Workers die before they begin.
        """
        ready, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=timeout)
        found = [self._hear(reference) for reference in ready]
        return [entry for entry in found if entry is not None]

    def close(self) -> None:
        """End all workers at once, and the cluster where it was started here."""
        for actor in [*self._idle, *(actor for actor, _ in self._busy.values())]:
            with suppress(Exception):  # of a cluster that has gone itself
                self._ray.kill(actor)
        self._idle, self._busy = [], {}
        if self._is_mine:
            self._ray.shutdown()

    def _add(self) -> None:
        actor = self._actor.remote(self._task, self._settings)
        self._busy[actor.begin.remote()] = actor, None

    def _hear(self, reference: Any) -> tuple[Job, Answer] | None:
        actor, job = self._busy.pop(reference)
        try:
            answer = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._deaths += job is None
            if self._deaths >= _STARTS:
                raise WorkerError(f"Ray's workers end before they begin: {error}") from None
            self._add()
            return None if job is None else (job, Answer(is_dead=True))
        self._idle.append(actor)
        self._deaths = 0
        return None if job is None else (job, answer)


class _Actor:
    def __init__(self, task: Task, settings: dict[str, str]) -> None:
        os.environ.update(settings)
        self._task = task

    def begin(self) -> None:
        """Answer when the task has arrived."""

    def do(self, method: str, block: Any) -> Answer:
        from cgnn.data.engines.processes import portable

        return portable(Job(block, method).do(self._task))


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise MissingPackageError("the engine 'ray' needs Ray: pip install 'cgnn[ray]'") from None
    return ray


def _start(ray: Any, size: int) -> None:
    options: dict[str, Any] = {"include_dashboard": False, "num_cpus": size or None}
    if "RAY_ADDRESS" in os.environ:
        options = {"address": "auto"}
    try:
        ray.init(**options, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise WorkerError(f"no Ray cluster could be reached or started: {error}") from error
