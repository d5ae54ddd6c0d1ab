"""What a training runs on: devices, threads, memory, random numbers, signals."""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from cgnn.config import TrainConfig
from cgnn.errors import ConfigError, MissingPackageError


def seed(seed: int, *purpose: object) -> None:
    """Start torch's random numbers for one purpose."""
    text = repr((seed, *purpose)).encode()
    torch.manual_seed(int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1)


def is_first_process() -> bool:
    """Tell whether this process writes the files, also before the engine has connected the processes."""
    ranks = (os.environ.get(name) for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"))
    return int(next((rank for rank in ranks if rank), 0)) == 0


def engine(settings: TrainConfig) -> Any:
    """Return Lightning Fabric on the devices and with the precision of the settings, launched.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    from lightning.fabric import Fabric

    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("train.device: 'cuda' was asked for, but torch sees no CUDA device")
    fabric = Fabric(
        # "auto" is not left to Fabric: it would take Apple's GPU, which has no float64 for positions
        accelerator="cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu",
        devices=settings.devices,
        num_nodes=settings.nodes,
        precision=settings.precision,
    )
    fabric.launch()
    return fabric


def tensorboard(folder: Path) -> Any:
    """Return a TensorBoard writer into a run folder.

    Raises:
        MissingPackageError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingPackageError('train.tensorboard needs TensorBoard: pip install "cgnn[tensorboard]"') from None
    return SummaryWriter(str(folder / "tensorboard"))


@contextmanager
def reproducible(settings: TrainConfig) -> Iterator[None]:
    """Set threads, deterministic algorithms and flushing of denormals, for the time of a fit."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""Numbers of glibc's settings in ``mallopt``."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the process keep the memory that is freed, for the time of a fit.

    glibc gives large blocks back to the system as soon as they are freed, and every step would get them anew, page by
    page; large features of edges (``edge_updates``) make that slow. At the end what is free goes back, and from then
    on new blocks go back from the sizes at which glibc itself stops adapting (32 MiB, and 64 MiB at the end of the
    heap). Other C libraries are left alone. Memory at its peak is the same.
    """
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if library is None or not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_MAX, 0)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_MMAP_MAX, 65536)
        library.mallopt(_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


@dataclass
class Stop:
    """The signal that asked to stop, 0 for none."""

    number: int = 0


@contextmanager
def deferred_signals() -> Iterator[Stop]:
    """Note SIGINT and SIGTERM instead of dying from them; a second one acts at once."""
    stop = Stop()
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.number = number
        signal.signal(number, before[number])

    try:
        for number in (int(signal.SIGINT), int(signal.SIGTERM)):
            before[number] = signal.signal(number, note)
    except ValueError:
        pass  # not the main thread: signals are somebody else's
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
