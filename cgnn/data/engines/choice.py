"""Where work over many crystals is done: here, in several processes, or on a Ray cluster.

All engines give the same results in the same order: the function sees one block at a time and nothing else.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable
from itertools import chain
from multiprocessing import current_process
from typing import Any

from cgnn.data.engines.crew import Function, Task, in_order
from cgnn.data.items import Block
from cgnn.errors import ConfigError, choose

PATIENCE = 2.0
"""Seconds of work after which ``auto`` starts worker processes: about what starting them takes."""

Results = Generator[Any, None, None]
"""Closing it ends the workers."""

Engine = Callable[[Function, Iterable[Block], int], Results]


def serial(function: Function, blocks: Iterable[Block], workers: int = 1) -> Results:
    """Do everything in this process."""
    return (function(block) for block in blocks)


def processes(function: Function, blocks: Iterable[Block], workers: int) -> Results:
    """Use worker processes of this machine."""
    from cgnn.data.engines.processes import Processes

    task = Task(function)
    yield from in_order(Processes(task, workers), task, blocks)


def ray(function: Function, blocks: Iterable[Block], workers: int) -> Results:
    """Use a Ray cluster: the one that ``RAY_ADDRESS`` names, or one that is started on this machine.

    Raises:
        MissingPackageError: Ray is not installed.
    """
    from cgnn.data.engines.ray_workers import RayWorkers

    task = Task(function)
    yield from in_order(RayWorkers(task, workers), task, blocks)


def auto(function: Function, blocks: Iterable[Block], workers: int) -> Results:
    """Begin in this process; where the work lasts, worker processes take over as soon as they have started."""
    from cgnn.data.engines.processes import Processes

    source = iter(blocks)
    began = time.monotonic()
    may_start = workers > 1 and not current_process().daemon  # daemons have no children
    for block in source:
        if may_start and time.monotonic() - began >= PATIENCE:
            task = Task(function)
            yield from in_order(Processes(task, workers), task, chain([block], source), is_helping=True)
            return
        yield function(block)


ENGINES: dict[str, Engine] = {"auto": auto, "serial": serial, "processes": processes, "ray": ray}


def run(engine: str, function: Function, blocks: Iterable[Block], workers: int = 0) -> Results:
    """Yield the result of a task for each block, in order; memory does not grow with their number.

    Args:
        engine: An entry of `ENGINES`.
        function: A pure function of a block.
        blocks: The blocks; read as they are needed.
        workers: How many; 0 means one for each processor that this process may use (of the cluster, for Ray).

    Raises:
        ConfigError: There is no such engine, or the number is negative.
    """
    chosen = choose(ENGINES, engine, "engine")
    if workers < 0:
        raise ConfigError(f"workers {workers}: expected a number from 0 (one for each processor)")
    if not workers and engine != "ray":
        workers = processors()
    return chosen(function, blocks, workers)


def applied(engine: str, workers: int = 0) -> Callable[[Function, Iterable[Block]], Results]:
    """Return an engine as a function that takes the place of ``map``; the arguments are those of `run`."""
    return lambda function, blocks: run(engine, function, blocks, workers)


AUTO = applied("auto")


def processors() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
