"""The state of a training on disk: enough to go on, bit for bit, from where it stood."""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cgnn.config import Config, build
from cgnn.data.dataset import CrystalDataset
from cgnn.errors import CheckpointError, ConfigError
from cgnn.files import write_bytes
from cgnn.strict import differences
from cgnn.train.checkpoint import STATE_FILE, read_tensors, write_tensors

VERSION = 1
"""Version of the state file; a state of another version is not taken up."""


@dataclass
class Progress:
    """Where training stands."""

    epoch: int = 0
    step: int = 0
    """Steps done within the epoch."""
    loss_sum: float = 0.0
    loss_count: int = 0
    best_score: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, float]] = field(default_factory=list)
    finished: bool = False


@dataclass(frozen=True)
class State:
    """Everything that changes while a network is fitted, under one save and one restore.

    Args:
        modules: The network and, under another name, its averaged copy.
        optimizer: Its optimizer.
        config: The settings; a state is only taken up under the same.
        data: Key of the data and the split (`data_key`); likewise.
        progress: How it is said where training stands.
    """

    modules: dict[str, nn.Module]
    optimizer: torch.optim.Optimizer
    config: Config
    data: str
    progress: type[Progress] = Progress

    def save(self, folder: Path, progress: Progress) -> None:
        """Write ``last/`` and ``history.jsonl``, each all or nothing."""
        tensors = {
            f"{prefix}.{name}": tensor
            for prefix, module in self.modules.items()
            for name, tensor in module.state_dict().items()
        }
        for index, entries in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in entries.items()}
        content = {
            "kind": "state",
            "version": VERSION,
            "config": self.config.model_dump(mode="json"),
            "data": self.data,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
            "progress": vars(progress),
        }
        # The state last: killed between the two, a resumed run writes the history again.
        write_bytes(folder / "history.jsonl", b"".join(orjson.dumps(row) + b"\n" for row in progress.history))
        write_tensors(folder / "last" / STATE_FILE, tensors, content)

    def restore(self, folder: Path) -> Progress:
        """Take up ``last/`` and return where training stood; without one it starts anew.

        A run killed before its first save has none.

        Raises:
            CheckpointError: It belongs to other settings or data; names what differs.
        """
        path = folder / "last" / STATE_FILE
        if not path.exists():
            return self.progress()
        tensors, content = read_tensors(path)
        if (content.get("kind"), content.get("version")) != ("state", VERSION):
            raise CheckpointError(f"{path}: no training state of this version ({VERSION}) of cgnn")
        self._check_same(content, path)
        for prefix, module in self.modules.items():
            module.load_state_dict(_below(tensors, f"{prefix}."))
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below(tensors, "optimizer.").items():
            index, entry = name.split(".")
            entries.setdefault(int(index), {})[entry] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        return self.progress(**content["progress"])

    def _check_same(self, content: dict[str, Any], path: Path) -> None:
        try:
            changed = differences(build(content["config"], source=str(path)), self.config)
        except (KeyError, ConfigError) as error:
            raise CheckpointError(f"{path}: its settings can't be read: {error}") from None
        if changed:
            lines = "; ".join(f"{key} was {old!r}, is {new!r}" for key, (old, new) in changed.items())
            raise CheckpointError(f"{path}: can't resume with other settings: {lines}")
        if content.get("data") != self.data:
            raise CheckpointError(f"{path}: can't resume with other data or another split")
        begun = str(content.get("torch"))
        if begun.partition(".")[0] != torch.__version__.partition(".")[0]:
            raise CheckpointError(f"{path}: begun with torch {begun}, can't resume with {torch.__version__}")
        if content.get("threads") != torch.get_num_threads():
            warnings.warn(
                f"resumed with {torch.get_num_threads()} threads, begun with {content.get('threads')}: "
                "the last bits of the weights will differ from an unbroken run (set train.threads)",
                stacklevel=3,
            )


def data_key(dataset: CrystalDataset, parts: dict[str, NDArray[Any]], method: str = "") -> str:
    """Return a key of the graphs, the labels, the parts trained and validated on, and the way of learning."""
    digest = hashlib.sha256(f"{dataset.store.key}{method}".encode())
    for name in ("train", "val"):
        digest.update("\n".join([name, *(dataset.ids[index] for index in parts[name])]).encode())
        for target in dataset.targets:
            digest.update(dataset.label(target, parts[name]).tobytes())
    return digest.hexdigest()


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
