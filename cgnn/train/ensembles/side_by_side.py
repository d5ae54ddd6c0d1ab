"""Members of an ensemble fitted one after another, or side by side in processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.engines.choice import processors
from cgnn.data.engines.processes import without_script
from cgnn.data.prepare import prepare
from cgnn.errors import CgnnError, Stopped, WorkerError
from cgnn.train.checkpoint import STATE_FILE, read_tensors
from cgnn.train.engine import deferred_signals
from cgnn.train.ensembles.member import Member
from cgnn.train.loop import Indices, fit

Report = Callable[[dict[str, float]], None]
Parts = dict[str, Indices]
Work = Callable[[Config, CrystalDataset, Parts, Path, Report | None, Member], None]
"""Fits a member in its folder, or goes on there; what is sent to a process must be a function of a module."""


def fit_alone(
    config: Config, dataset: CrystalDataset, parts: Parts, folder: Path, report: Report | None, member: Member
) -> None:
    """Fit a member."""
    fit(config, dataset, parts, folder, True, report, member)


def reopened(config: Config) -> CrystalDataset:
    """Return the data set of some settings."""
    return CrystalDataset(prepare(config.data, config.graph), config.targets)


@dataclass(frozen=True)
class Group:
    """Members that are to be fitted, and on what.

    Args:
        config: Their settings.
        dataset: Crystals with labels.
        parts: Indices into the data set.
        folder: Each member leaves its files in a folder of its own below it, ``0``, ``1``, ...
        members: The members.
        workers: Number of processes; 0 means one for each processor that this process may use.
        report: Gives, for a member, what is called with each epoch's row.
        work: What is done for a member that is not fitted at once with others.
        reopen: Gives the same data set in another process.
        retries: How often a member whose process died is taken up again.
        enough: Is told the number of each member that is done, in any order; whether no more are wanted. Those at
            work then save their states.
        shared: Where, below the folder, the state of members lies that are fitted at once.
    """

    config: Config
    dataset: CrystalDataset
    parts: Parts
    folder: Path
    members: tuple[Member, ...]
    workers: int = 0
    report: Callable[[int], Report] | None = None
    work: Work = fit_alone
    reopen: Callable[[Config], CrystalDataset] = reopened
    retries: int = 0
    enough: Callable[[int], bool] | None = None
    shared: str = ""

    def config_of(self, member: Member) -> Config:
        """Return the settings of a member."""
        return self.config.of_member(member.number)

    def parts_of(self, member: Member) -> Parts:
        """Return what a member is fitted on."""
        return self.parts if member.parts is None else member.parts

    def do(self, member: Member) -> None:
        """Do the work of a member in this process."""
        report = self.report(member.number) if self.report else None
        config, parts = self.config_of(member), self.parts_of(member)
        self.work(config, self.dataset, parts, self.folder / str(member.number), report, member)

    def has_enough(self, member: Member) -> bool:
        """Note that a member is done; tell whether no more are wanted."""
        return self.enough is not None and self.enough(member.number)


def one_by_one(group: Group) -> None:
    """Fit members one after another; go on where they stand."""
    for member in group.members:
        group.do(member)
        if group.has_enough(member):
            return


def in_processes(group: Group) -> None:
    """Fit members side by side, each in a process of its own; go on where they stand.

    Where there are several GPUs, each process sees one of them, and without a number there are as many as GPUs.

    SIGINT and SIGTERM let every member save its state.

    Raises:
        Stopped: A signal arrived; the states are saved.
        WorkerError: A process died, and as many for the same member before as may.
    """
    waiting = deque(member for member in group.members if not _is_finished(group, member))
    has_enough = [group.has_enough(member) for member in group.members if member not in waiting]
    if any(has_enough):
        return
    devices = gpus(group.config)
    size = group.workers or (len(devices) if len(devices) > 1 else processors())
    crew = _Crew(group, waiting, devices)
    with deferred_signals() as stop:
        try:
            while waiting or crew.running:
                while waiting and len(crew.running) < size and not stop.number:
                    crew.start(waiting.popleft())
                if stop.number or crew.error or crew.has_enough:
                    waiting.clear()
                    crew.stop()
                crew.hear()
        finally:
            crew.close()
    if stop.number:
        raise Stopped(stop.number)
    if crew.error:
        raise crew.error


def gpus(config: Config) -> list[str]:
    """Return the names of the GPUs that processes share out, as ``CUDA_VISIBLE_DEVICES`` has them."""
    if config.train.device == "cpu" or not torch.cuda.is_available():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


def _is_finished(group: Group, member: Member) -> bool:
    """Tell whether a member has nothing left to do; its state must fit the settings and the data."""
    state = group.folder / str(member.number) / "last" / STATE_FILE
    if not state.exists() or not read_tensors(state)[1].get("progress", {}).get("finished"):
        return False
    group.do(member)
    return True


@dataclass(frozen=True)
class _Job:
    """What a process is told: everything else it reads itself."""

    config: Config
    parts: Parts
    folder: Path
    member: Member
    work: Work
    reopen: Callable[[Config], CrystalDataset]
    environment: dict[str, str]


class _Crew:
    """The processes that are at work, one for each member.

    Args:
        group: The members.
        waiting: Those that have their turn later; one whose process died may come back to it.
        devices: GPUs, of which each process sees the one that fewest others see.
    """

    def __init__(self, group: Group, waiting: deque[Member], devices: Sequence[str]) -> None:
        self.group, self.waiting, self.devices = group, waiting, devices
        self._device_of: dict[Connection, str] = {}
        self.running: dict[Connection, tuple[Member, Any]] = {}
        self.error: Exception | None = None
        self.has_enough = False
        self._deaths: Counter[int] = Counter()
        # forked from a server that has imported this module, which saves seconds for each
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._is_stopping = False

    def start(self, member: Member) -> None:
        ours, theirs = self._context.Pipe()
        folder = self.group.folder / str(member.number)
        environment = {name: value for name, value in os.environ.items() if name.startswith("CGNN_")}
        if self.devices:
            taken = Counter(self._device_of.values())
            self._device_of[ours] = min(self.devices, key=lambda name: taken[name])
            environment["CUDA_VISIBLE_DEVICES"] = self._device_of[ours]
        group = self.group
        config, parts = group.config_of(member), group.parts_of(member)
        job = _Job(config, parts, folder, member, group.work, group.reopen, environment)
        process = self._context.Process(target=_work, args=(theirs, job), daemon=True)
        with without_script():
            process.start()
        theirs.close()
        self.running[ours] = (member, process)

    def stop(self) -> None:
        """Ask all to save their states and end."""
        if self._is_stopping:
            return
        self._is_stopping = True
        for connection in self.running:
            _send(connection, None)

    def hear(self) -> None:
        """Wait a moment for what the processes say."""
        for connection in wait(list(self.running), timeout=0.2):
            assert isinstance(connection, Connection)
            member, process = self.running[connection]
            try:
                kind, value = connection.recv()
            except (EOFError, OSError):
                process.join()
                self._end(connection)
                if not self._is_stopping:
                    self._note_death(member, process.exitcode)
                continue
            if kind == "row" and self.group.report:
                self.group.report(member.number)(value)
            elif kind in ("done", "end"):
                self.error = self.error or value
                process.join()
                self._end(connection)
                if kind == "done":
                    self.has_enough = self.group.has_enough(member) or self.has_enough

    def _note_death(self, member: Member, code: int | None) -> None:
        """Take a member up again from its last state; give up when that was done often enough."""
        what = f"member {member.number}: its process ended with exit code {code}"
        self._deaths[member.number] += 1
        if self._deaths[member.number] > self.group.retries:
            self.error = WorkerError(f"{what}; --resume goes on with fewer --workers, if it was for want of memory")
            return
        warnings.warn(f"{what}; it is taken up again", stacklevel=2)
        self.waiting.appendleft(member)

    def close(self) -> None:
        """End at once those that are left."""
        for connection, (_, process) in list(self.running.items()):
            process.kill()
            process.join()
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        del self.running[connection]
        self._device_of.pop(connection, None)
        connection.close()


def _send(connection: Connection, message: Any) -> None:
    with suppress(OSError):  # the other end has gone
        connection.send(message)


def _work(connection: Connection, job: _Job) -> None:
    """Fit one member; end with a saved state when the other end of the connection speaks or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C reaches all; the parent tells when to stop
    os.environ.update(job.environment)
    threading.Thread(target=_listen, args=(connection,), daemon=True).start()
    warnings.simplefilter("ignore")  # the parent has warned
    error: Exception | None = None
    kind = "end"
    try:
        report: Report = lambda row: _send(connection, ("row", row))  # noqa: E731
        job.work(job.config, job.reopen(job.config), job.parts, job.folder, report, job.member)
        kind = "done"
    except Stopped:
        pass
    except CgnnError as caught:
        error = type(caught)(f"member {job.member.number}: {caught}")
    except Exception:
        error = RuntimeError(f"in member {job.member.number}: {traceback.format_exc()}")
    _send(connection, (kind, error))


def _listen(connection: Connection) -> None:
    """Stop this process's fit, as a signal does, when the parent says so or has died."""
    with suppress(EOFError, OSError):
        connection.recv()
    while True:  # until there is a fit that hears it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
