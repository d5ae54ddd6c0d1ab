"""One task over many blocks by workers that may die: results in the order of the blocks, few at a time.

A block whose worker dies is done again by another one. If that one dies too, the block is split into single
crystals; a crystal that ends its worker alone is given up, and the others go on. Who held which block must be
known for that, which the pools of the standard library do not tell: they lose all that was being worked on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from cgnn.data.items import Block, Finished, SetAside, printable
from cgnn.errors import CgnnError

READ_AHEAD = 4
"""So many blocks for each worker are read and not yet passed on: memory does not grow with the input."""


Function = Callable[[Block], Any]
"""Pure: it can be called again, in any process; pickled by reference or as an object."""


@dataclass(frozen=True)
class Task:
    """A function of blocks, and what to do with a block that ends the worker that calls it.

    Args:
        function: The function; where it has a method ``join``, this makes one result of those of a block's parts.
    """

    function: Function

    def do(self, block: Block) -> Any:
        """Return what the function makes of a block."""
        return self.function(block)

    def lost(self, block: Block) -> Any:
        """Return what it makes of a block whose crystal ended a worker: the crystal is set aside."""
        aside = [item if isinstance(item, SetAside) else _dead(item.material_id, item.source) for item in block.items()]
        return self.function(Finished(list(aside)))

    def lost_unread(self, block: Block) -> Any:
        """Return the same where reading the block alone ends a worker."""
        return self.function(Finished([_dead("", printable(block.place))]))

    def joined(self, values: list[Any]) -> list[Any]:
        """Return the results of the parts of a block that was split: joined, where the function says how."""
        join = getattr(self.function, "join", None)
        return values if join is None else [join(values)]


def _dead(material_id: str, source: str) -> SetAside:
    reason = "the process that worked on it was killed twice, the last time with this crystal alone (memory?)"
    return SetAside(material_id, source, "worker", "worker_died", reason)


@dataclass(frozen=True)
class Answer:
    """What came of a block: a value, an error that the task raised, or the death of the worker.

    Args:
        value: The value.
        error: The error.
        is_dead: Whether the worker died.
    """

    value: Any = None
    error: BaseException | None = None
    is_dead: bool = False


@dataclass(eq=False)
class Job:
    """A block on its way.

    Args:
        block: The block.
        method: Method of the task that is to be called.
        is_single: Whether it was split off another block.
        deaths: How many workers it has ended.
        answer: What came of it.
        family: All parts of the block that was split; noted with the first of them.
    """

    block: Block
    method: str = "do"
    is_single: bool = False
    deaths: int = 0
    answer: Answer | None = None
    family: list[Job] = field(default_factory=list)

    def do(self, task: Task) -> Answer:
        """Do the job in this process."""
        try:
            return Answer(getattr(task, self.method)(self.block))
        except Exception as error:
            return Answer(error=error)


class Crew(Protocol):
    """Workers that know the task; a dead one is replaced."""

    size: int

    def idle(self) -> int:
        """Return how many workers wait for a job."""

    def is_ready(self) -> bool:
        """Tell whether any worker has started."""

    def give(self, job: Job) -> None:
        """Hand a job to a worker that waits."""

    def finished(self, timeout: float | None = None) -> list[tuple[Job, Answer]]:
        """Wait until something happens and return the jobs that have come to an end."""

    def close(self) -> None:
        """End all workers at once."""


def in_order(crew: Crew, task: Task, blocks: Iterable[Block], is_helping: bool = False) -> Iterator[Any]:
    """Yield the results of blocks in their order.

    Args:
        crew: The workers; ended with the iteration, whatever ends it.
        task: What they do.
        blocks: The blocks; read as they are needed.
        is_helping: Whether this process does jobs while no worker has started yet.

    Raises:
        CgnnError: The task or the blocks raised it, and all results before it were passed on.
    """
    queue = _Queue(task, blocks, READ_AHEAD * crew.size)
    try:
        while True:
            while queue.fill() and crew.idle():
                crew.give(queue.waiting.popleft())
            yield from queue.done()
            if queue.is_empty:
                return
            if is_helping and queue.waiting:
                is_helping = not crew.is_ready()
                if is_helping:
                    job = queue.waiting.popleft()
                    job.answer = job.do(task)
                continue
            if crew.idle() == crew.size:
                continue  # what was passed on has made room for more, or all was read
            for job, answer in crew.finished():
                queue.settle(job, answer)
    finally:
        crew.close()


class _Queue:
    """Jobs from being read to being passed on."""

    def __init__(self, task: Task, blocks: Iterable[Block], limit: int) -> None:
        self._task = task
        self._source = iter(blocks)
        self._limit = limit
        self._has_more = True
        self._jobs: list[Job] = []  # in the order of the input, from the first that was not passed on
        self.waiting: deque[Job] = deque()

    @property
    def is_empty(self) -> bool:
        return not self._jobs and not self._has_more

    def fill(self) -> bool:
        """Read a block unless one waits or enough are on their way; return whether one waits."""
        if not self.waiting and self._has_more and len(self._jobs) < self._limit:
            try:
                job = Job(next(self._source))
            except StopIteration:
                self._has_more = False
            except CgnnError as error:  # has its turn when all before it is done
                self._has_more = False
                self._jobs.append(Job(Finished([]), answer=Answer(error=error)))
            else:
                self._jobs.append(job)
                self.waiting.append(job)
        return bool(self.waiting)

    def done(self) -> Iterator[Any]:
        while self._jobs:
            family = self._jobs[0].family or self._jobs[:1]
            answers = [job.answer for job in family if job.answer is not None]
            for answer in answers:
                if answer.error is not None:
                    raise answer.error
            if len(answers) < len(family):
                return
            del self._jobs[: len(family)]
            values = [answer.value for answer in answers]
            yield from self._task.joined(values) if len(values) > 1 else values

    def settle(self, job: Job, answer: Answer) -> None:
        if not answer.is_dead:
            job.answer = answer
            return
        job.deaths += 1
        if job.method == "lost":
            job.answer = Answer(self._task.lost_unread(job.block))
        elif job.is_single:
            job.method = "lost"
            self.waiting.appendleft(job)
        elif job.deaths == 1:
            self.waiting.appendleft(job)
        else:
            self._split(job)

    def _split(self, job: Job) -> None:
        parts = [Job(block, is_single=True) for block in job.block.split()]
        if len(parts) == 1:  # has been alone from the beginning
            parts[0].method = "lost"
        parts[0].family = parts
        place = self._jobs.index(job)
        self._jobs[place : place + 1] = parts
        self.waiting.extendleft(reversed(parts))
