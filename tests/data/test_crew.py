"""Jobs and workers, with workers that answer in an order of our own."""

from typing import Any

from cgnn.data.engines.crew import READ_AHEAD, Answer, Job, Task, in_order
from cgnn.data.items import Block, Finished


def number(block: Block) -> int:
    return int(block.items()[0])


class Slow:
    """Two workers; the first job is answered when nothing else is being worked on."""

    size = 2

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.given = 0

    def idle(self) -> int:
        return self.size - len(self.jobs)

    def is_ready(self) -> bool:
        return True

    def give(self, job: Job) -> None:
        assert self.idle()
        self.jobs.append(job)
        self.given += 1

    def finished(self, timeout: float | None = None) -> list[tuple[Job, Answer]]:
        assert self.jobs, "waits for workers that have nothing to do: it would wait forever"
        job = self.jobs.pop()  # the latest first
        return [(job, Answer(number(job.block)))]

    def close(self) -> None:
        self.jobs.clear()


def check(blocks: int) -> None:
    source: list[Any] = [Finished([index]) for index in range(blocks)]  # type: ignore[list-item]
    crew = Slow()
    assert list(in_order(crew, Task(number), source)) == list(range(blocks))
    assert crew.given == blocks


def test_a_slow_block_does_not_stall_the_others() -> None:
    """All blocks that may be read ahead are answered at once when the first one is: there is room for more then."""
    ahead = READ_AHEAD * Slow.size
    for blocks in (0, 1, ahead - 1, ahead, ahead + 1, 3 * ahead, 3 * ahead + 1):
        check(blocks)
