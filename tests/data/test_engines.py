"""Engines on toy tasks: order, bounds, errors, deaths, and what is left of the workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cgnn.data.engines import ENGINES, processes, run
from cgnn.data.engines import choice as engines
from cgnn.data.items import Block, Item, Record, SetAside
from cgnn.errors import ConfigError, DataError, MissingPackageError, WorkerError
from cgnn.graph.crystal import Crystal

CELL = Crystal(np.array([29]), np.zeros((1, 3)), np.eye(3) * 3)


@pytest.fixture(autouse=True)
def _tasks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray's workers find this file; worker processes have the parent's path."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


RAY = pytest.param("ray", marks=pytest.mark.slow)  # a cluster takes seconds to start


@pytest.fixture(params=[RAY if name == "ray" else name for name in sorted(ENGINES)])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(engines, "PATIENCE", 0.0)
    return request.param


@dataclass(frozen=True)
class Numbers:
    """A block of numbers in place of crystals; reading ``deadly`` ones ends the process."""

    numbers: list[int]
    deadly: tuple[int, ...] = ()

    def items(self) -> list[Any]:
        if set(self.deadly) & set(self.numbers):
            os.kill(os.getpid(), signal.SIGKILL)
        return [Record(str(number), CELL, {}, f"here:{number}") for number in self.numbers]

    def split(self) -> list[Any]:
        return [Numbers([number], self.deadly) for number in self.numbers]

    @property
    def place(self) -> str:
        return f"here:{self.numbers[0]}"


@dataclass(frozen=True)
class Squares:
    """Squares numbers; ``deadly`` ones end the process, for good or while a file does not exist."""

    deadly: tuple[int, ...] = ()
    witness: str = ""
    wrong: int = -1
    delay: float = 0.0

    def __call__(self, block: Block) -> list[Any]:
        time.sleep(self.delay)
        return [self.square(item) for item in block.items()]

    def square(self, item: Item) -> Any:
        if isinstance(item, SetAside):
            return item
        number = int(item.material_id)
        if number == self.wrong:
            raise DataError(f"{number} is wrong")
        witness = Path(self.witness) / str(number)
        if number in self.deadly and not (self.witness and witness.exists()):
            if self.witness:
                witness.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return number * number


def tens(number: int, deadly: tuple[int, ...] = ()) -> list[Block]:
    return [Numbers(list(range(start, start + 10)), deadly) for start in range(0, 10 * number, 10)]


def flat(results: Any) -> list[Any]:
    return [entry for result in results for entry in result]


def children() -> set[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return {int(word) for word in found.stdout.split()}


def test_order(engine: str) -> None:
    assert flat(run(engine, Squares(), tens(40), 2)) == [n * n for n in range(400)]
    assert flat(run(engine, Squares(), [], 2)) == []


def test_any_number_of_blocks_is_read_as_needed(engine: str) -> None:
    read = count()

    def endless() -> Any:
        while True:
            yield Numbers([next(read)])

    results = run(engine, Squares(), endless(), 2)
    assert flat(islice(results, 50)) == [n * n for n in range(50)]
    results.close()
    assert next(read) <= 50 + 2 * 4 + 1  # READ_AHEAD for each worker


def test_errors_come_in_their_turn(engine: str) -> None:
    def broken() -> Any:
        yield from tens(3)
        raise DataError("the file ends here")

    found = []
    with pytest.raises(DataError, match="the file ends here"):
        found += list(run(engine, Squares(), broken(), 2))
    results = run(engine, Squares(), broken(), 2)
    assert [next(results) for _ in range(3)] == [[n * n for n in block.numbers] for block in tens(3)]
    with pytest.raises(DataError, match="the file ends here"):
        next(results)
    results = run(engine, Squares(wrong=15), tens(5), 2)
    assert next(results) == [n * n for n in range(10)]
    with pytest.raises(DataError, match="15 is wrong"):
        next(results)


@dataclass(frozen=True)
class Faulty(Squares):
    def __call__(self, block: Block) -> list[Any]:
        raise ZeroDivisionError("a mistake of ours")


def test_mistakes_of_ours_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)in a worker.*in __call__.*ZeroDivisionError: a mistake of ours"):
        list(run("processes", Faulty(), tens(1), 1))


def test_bad_requests() -> None:
    with pytest.raises(ConfigError, match="unknown engine 'proceses'; did you mean 'processes'"):
        run("proceses", Squares(), [], 2)
    with pytest.raises(ConfigError, match="workers -1"):
        run("serial", Squares(), [], -1)


def test_absent_ray_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'cgnn\[ray\]'"):
        list(run("ray", Squares(), tens(1), 2))


# Deaths


@pytest.mark.parametrize("engine", ["processes", RAY])
def test_a_block_whose_worker_dies_is_done_again(engine: str, tmp_path: Path) -> None:
    task = Squares(deadly=(3, 17, 23, 44), witness=str(tmp_path))
    assert flat(run(engine, task, tens(6), 2)) == [n * n for n in range(60)]


@pytest.mark.parametrize("engine", ["processes", RAY])
def test_only_what_kills_is_lost(engine: str) -> None:
    expected: list[Any] = [n * n for n in range(50)]
    found = flat(run(engine, Squares(deadly=(13, 30)), tens(5, deadly=(14,)), 2))
    lost = {place: found[place] for place in (13, 14, 30)}
    assert [n * n if n in lost else entry for n, entry in enumerate(found)] == expected
    told = [(aside.material_id, aside.source, aside.code) for aside in lost.values()]
    assert told == [
        ("13", "here:13", "worker_died"), ("", "here:14", "worker_died"), ("30", "here:30", "worker_died"),
    ]  # fmt: skip


def test_single_blocks_are_tried_twice(tmp_path: Path) -> None:
    singles = tens(1)[0].split()[:3]
    zero, lost, four = flat(run("processes", Squares(deadly=(1,)), singles, 2))
    assert (zero, lost.code, four) == (0, "worker_died", 4)
    assert flat(run("processes", Squares(deadly=(1,), witness=str(tmp_path)), singles, 2)) == [0, 1, 4]


def test_workers_killed_from_outside() -> None:
    before = children()
    results = run("processes", Squares(delay=0.02), tens(60), 2)
    found = next(results)
    server = children() - before
    for killed, result in enumerate(results):
        found += result
        if killed % 6 == 0 and killed < 48:
            workers = [pid for parent in server for pid in below(parent)]
            if workers:
                os.kill(workers[killed // 6 % len(workers)], signal.SIGKILL)
    assert found == [n * n for n in range(600)]


def below(parent: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]


@dataclass(frozen=True)
class Unwilling(Squares):
    def __setstate__(self, state: Any) -> None:
        os._exit(7)


def test_workers_that_never_begin() -> None:
    with pytest.raises(WorkerError, match=r"end before they begin \(exit code 7\)"):
        list(run("processes", Unwilling(deadly=(1,)), tens(2), 2))


def test_workers_end_with_the_iteration() -> None:
    results = run("processes", Squares(delay=0.01), tens(100), 2)
    next(results)
    started = [process.pid for process in processes.multiprocessing.active_children()]
    assert len(started) == 2
    results.close()
    for pid in started:
        with pytest.raises(ProcessLookupError, match="No such process"):
            os.kill(pid, 0)


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """A killed parent leaves no orphans behind, and a script without a guard is not run again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import multiprocessing, time\n"
        "from test_engines import Squares, tens\n"
        "from cgnn.data.engines import run\n"
        "results = run('processes', Squares(delay=0.05), tens(10000), 2)\n"
        "next(results)\n"
        "print(*[p.pid for p in multiprocessing.active_children()], flush=True)\n"
        "list(results)\n"
    )
    command = [sys.executable, str(script), str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
    for _ in range(500):
        alive = [pid for pid in pids if Path(f"/proc/{pid}").exists()]
        if not alive:
            break
        time.sleep(0.02)
    assert not alive
