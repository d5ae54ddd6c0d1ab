"""Members of an ensemble fitted by workers of a Ray cluster, one member at a time each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from cgnn.config import Config
from cgnn.data.dataset import CrystalDataset
from cgnn.data.engines import run
from cgnn.data.items import Block, Item
from cgnn.errors import WorkerError
from cgnn.train.ensembles.member import Member
from cgnn.train.ensembles.side_by_side import Group, Parts, Work


def on_ray(group: Group) -> None:
    """Fit members on a Ray cluster; go on where they stand.

    All its machines must see the data and the folder under the same paths. A member whose worker died is taken up
    again once, from its last state. Rows of epochs are not reported, they stand in the members' histories.

    Raises:
        WorkerError: The worker of a member died twice.
        MissingPackageError: Ray is not installed.
    """
    blocks = [
        _Piece(group.config_of(member), member, group.parts_of(member), group.folder / str(member.number))
        for member in group.members
    ]
    fitting = _Fitting(group.work, group.reopen)
    with closing(run("ray", fitting, iter(blocks), group.workers)) as results:
        for member, _ in zip(group.members, results, strict=True):
            if group.has_enough(member):
                return


@dataclass(frozen=True)
class _Piece:
    """A member on its way to a worker: a block that holds no crystals.

    Args:
        config: Its settings.
        member: The member.
        parts: What it is fitted on.
        folder: Its folder.
    """

    config: Config
    member: Member
    parts: Parts
    folder: Path

    def items(self) -> list[Item]:
        """Return nothing: what ended a worker is the member itself."""
        return []

    def split(self) -> list[Block]:
        """Return the member alone."""
        return [self]

    @property
    def place(self) -> str:
        """Name of the member."""
        return f"member {self.member.number}"


@dataclass(frozen=True)
class _Fitting:
    """Fits members in a worker.

    Args:
        work: What is done for each.
        reopen: Gives the data set.
    """

    work: Work
    reopen: Callable[[Config], CrystalDataset]

    def __call__(self, piece: Block) -> int:
        """Fit a member; return its number."""
        if not isinstance(piece, _Piece):  # what the engine gives up
            raise WorkerError(
                "the worker of a member ended twice; --resume goes on, with fewer --workers if for memory"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the parent has warned
            self.work(piece.config, self.reopen(piece.config), piece.parts, piece.folder, None, piece.member)
        return piece.member.number
