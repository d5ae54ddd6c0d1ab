"""Worker processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any

from cgnn.data.engines.crew import Answer, Job, Task
from cgnn.errors import WorkerError

_STARTS = 8
"""So many workers in a row that die before they have begun mean that none ever will."""
_ENDED = (EOFError, OSError)
"""What a connection raises whose other end has died."""


@dataclass(eq=False)
class _Worker:
    process: Any
    connection: Connection
    job: Job | None = None
    has_started: bool = False


class Processes:
    """Worker processes, each with the task; one job at a time goes to each.

    They are forked from a server process that has imported the task's module, which saves seconds for each, and
    not from this one, whose threads would not survive that.

    Args:
        task: What they do; it is sent once to each.
        size: Their number.
    """

    def __init__(self, task: Task, size: int) -> None:
        self.size = size
        self._task = task
        self._deaths = 0
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([task.function.__module__])
        self._workers = [self._start() for _ in range(size)]

    def idle(self) -> int:
        """Return how many workers wait for a job."""
        return sum(worker.has_started and worker.job is None for worker in self._workers)

    def is_ready(self) -> bool:
        """Tell whether any worker has started."""
        if not any(worker.has_started for worker in self._workers):
            for worker in self._workers:
                if worker.connection.poll():
                    self._hear(worker)
        return any(worker.has_started for worker in self._workers)

    def give(self, job: Job) -> None:
        """Hand a job to a worker that waits."""
        worker = next(worker for worker in self._workers if worker.has_started and worker.job is None)
        worker.job = job
        with suppress(*_ENDED):  # its death is heard of in `finished`
            worker.connection.send((job.method, job.block))

    def finished(self, timeout: float | None = None) -> list[tuple[Job, Answer]]:
        """Wait until something happens and return the jobs that have come to an end.

        Raises:
            WorkerError: Workers die before they begin.
        """
        ready = wait([worker.connection for worker in self._workers], timeout)
        found = [self._hear(worker) for worker in list(self._workers) if worker.connection in ready]
        return [entry for entry in found if entry is not None]

    def close(self) -> None:
        """End all workers at once; they hold nothing that could be lost."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.connection.close()
        self._workers = []

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        settings = {name: value for name, value in os.environ.items() if name.startswith("CGNN_")}
        process = self._context.Process(target=_work, args=(theirs, self._task, settings), daemon=True)
        with without_script():
            process.start()
        theirs.close()
        return _Worker(process, ours)

    def _hear(self, worker: _Worker) -> tuple[Job, Answer] | None:
        job = worker.job
        try:
            answer = worker.connection.recv()
        except _ENDED:
            self._replace(worker)
            return None if job is None else (job, Answer(is_dead=True))
        worker.job = None
        self._deaths = 0  # where one worker answers, others can begin
        if worker.has_started and job is not None:
            return job, answer
        worker.has_started = True
        return None

    def _replace(self, worker: _Worker) -> None:
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        self._deaths += not worker.has_started
        if self._deaths >= _STARTS:
            raise WorkerError(
                f"worker processes end before they begin (exit code {worker.process.exitcode}); "
                "the serial engine does without them"
            )
        self._workers[self._workers.index(worker)] = self._start()


@contextmanager
def without_script() -> Iterator[None]:
    """Hide the script that was started: a worker needs nothing of it, and importing it again would run it again."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


def _work(connection: Connection, task: Task, settings: dict[str, str]) -> None:
    """Do jobs until the other end of the connection is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends its workers itself
    os.environ.update(settings)
    with suppress(*_ENDED):
        connection.send(None)
        while True:
            method, block = connection.recv()
            connection.send(portable(Job(block, method).do(task)))


def portable(answer: Answer) -> Answer:
    """Return the answer with an error that can be sent and keeps its traceback as text."""
    import traceback

    from cgnn.errors import CgnnError

    if answer.error is None or isinstance(answer.error, CgnnError):
        return answer
    return Answer(error=RuntimeError("in a worker: " + "".join(traceback.format_exception(answer.error))))
