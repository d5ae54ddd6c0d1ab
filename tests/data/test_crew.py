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


class Doubling:
    """Doubles the numbers of a block; joins the lists of its parts."""

    def __call__(self, block: Block) -> list[int]:
        return [2 * int(item) for item in block.items()]  # type: ignore[call-overload]

    def join(self, values: list[list[int]]) -> list[int]:
        return [entry for value in values for entry in value]


class Losing(Task):
    def lost(self, block: Block) -> list[int]:
        return [-1]


class Deadly(Slow):
    """Workers that die over blocks with a 5 in them."""

    def finished(self, timeout: float | None = None) -> list[tuple[Job, Answer]]:
        job = self.jobs.pop()
        is_dead = job.method == "do" and 5 in [int(item) for item in job.block.items()]  # type: ignore[call-overload]
        return [(job, Answer(is_dead=True) if is_dead else job.do(Losing(Doubling())))]


def test_a_block_that_was_split_has_one_result() -> None:
    """Otherwise a build that is gone on with would take its parts for blocks, and leave blocks out."""
    source: list[Any] = [Finished(numbers) for numbers in ([2, 3], [4, 5, 6], [7, 8])]  # type: ignore[arg-type]
    crew = Deadly()
    assert list(in_order(crew, Losing(Doubling()), source)) == [[4, 6], [8, -1, 12], [14, 16]]
    assert crew.given == 3 + 1 + 3 + 1  # the blocks, one of them again, its parts, one of these again
