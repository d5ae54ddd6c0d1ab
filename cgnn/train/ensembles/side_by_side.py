"""Members of an ensemble fitted one after another, or side by side in processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

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
    """

    config: Config
    dataset: CrystalDataset
    parts: dict[str, Indices]
    folder: Path
    members: tuple[Member, ...]
    workers: int = 0
    report: Callable[[int], Report] | None = None


def one_by_one(group: Group) -> None:
    """Fit members one after another; go on where they stand."""
    for member in group.members:
        report = group.report(member.number) if group.report else None
        place = group.folder / str(member.number)
        fit(group.config, group.dataset, group.parts, place, True, report, member)


def in_processes(group: Group) -> None:
    """Fit members side by side, each in a process of its own; go on where they stand.

    SIGINT and SIGTERM let every member save its state.

    Raises:
        Stopped: A signal arrived; the states are saved.
        WorkerError: A process died.
    """
    waiting = deque(member for member in group.members if not _is_finished(group, member))
    size = group.workers or processors()
    crew = _Crew(group)
    with deferred_signals() as stop:
        try:
            while waiting or crew.running:
                while waiting and len(crew.running) < size and not stop.number:
                    crew.start(waiting.popleft())
                if stop.number or crew.error:
                    waiting.clear()
                    crew.stop()
                crew.hear()
        finally:
            crew.close()
    if stop.number:
        raise Stopped(stop.number)
    if crew.error:
        raise crew.error


def _is_finished(group: Group, member: Member) -> bool:
    """Tell whether a member has nothing left to do; its state must fit the settings and the data."""
    state = group.folder / str(member.number) / "last" / STATE_FILE
    if not state.exists() or not read_tensors(state)[1].get("progress", {}).get("finished"):
        return False
    fit(group.config, group.dataset, group.parts, state.parents[1], True, method=member)
    return True


@dataclass(frozen=True)
class _Job:
    """What a process is told: everything else it reads itself."""

    config: Config
    parts: dict[str, Indices]
    folder: Path
    member: Member
    environment: dict[str, str]


class _Crew:
    """The processes that are at work, one for each member.

    Args:
        group: The members.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.running: dict[Connection, tuple[Member, Any]] = {}
        self.error: Exception | None = None
        # forked from a server that has imported this module, which saves seconds for each
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__])
        self._is_stopping = False

    def start(self, member: Member) -> None:
        ours, theirs = self._context.Pipe()
        folder = self.group.folder / str(member.number)
        environment = {name: value for name, value in os.environ.items() if name.startswith("CGNN_")}
        job = _Job(self.group.config, self.group.parts, folder, member, environment)
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
                    self.error = WorkerError(
                        f"member {member.number}: its process ended with exit code {process.exitcode}; "
                        "--resume goes on with fewer --workers, if it was for want of memory"
                    )
                continue
            if kind == "row" and self.group.report:
                self.group.report(member.number)(value)
            elif kind == "end":
                self.error = self.error or value
                process.join()
                self._end(connection)

    def close(self) -> None:
        """End at once those that are left."""
        for connection, (_, process) in list(self.running.items()):
            process.kill()
            process.join()
            self._end(connection)

    def _end(self, connection: Connection) -> None:
        del self.running[connection]
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
    try:
        dataset = CrystalDataset(prepare(job.config.data, job.config.graph), job.config.targets)
        report: Report = lambda row: _send(connection, ("row", row))  # noqa: E731
        fit(job.config, dataset, job.parts, job.folder, True, report, job.member)
    except Stopped:
        pass
    except CgnnError as caught:
        error = type(caught)(f"member {job.member.number}: {caught}")
    except Exception:
        error = RuntimeError(f"in member {job.member.number}: {traceback.format_exc()}")
    _send(connection, ("end", error))


def _listen(connection: Connection) -> None:
    """Stop this process's fit, as a signal does, when the parent says so or has died."""
    with suppress(EOFError, OSError):
        connection.recv()
    while True:  # until there is a fit that hears it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
