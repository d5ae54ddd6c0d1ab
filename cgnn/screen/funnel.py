"""A screen: crystals pass through stages until a few are left, and every other one can be asked why not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from cgnn.data.engines import run as run_engine
from cgnn.data.items import Block, Finished, Item
from cgnn.data.repeats import Repeats
from cgnn.data.store.content import content_key
from cgnn.errors import ConfigError, DataError, choose
from cgnn.files import write_json
from cgnn.screen.chunk import Known
from cgnn.screen.head import Head
from cgnn.screen.results import Screening, write_results
from cgnn.screen.sameness import SAMENESS
from cgnn.screen.settings import READ, ScreenConfig, load_screen
from cgnn.screen.shelf import Shelf
from cgnn.screen.stages import STEPS, Predict, Score
from cgnn.screen.tail import Bound, Ending
from cgnn.train.pretrained import model_file

Crystals = Iterable[Item | Block]
"""Crystals one by one, or in blocks that any process can read."""
Counter = Callable[[int], object]
"""Is told how many more crystals are done."""

_LOOSE = 256
"""So many crystals that are in memory make a block."""
STATE, WORK = "screen.json", "work"


class Funnel:
    """Stages through which crystals pass, ready to run.

    The stages up to the first ranking work on blocks of crystals, here or in other processes, and leave their results
    on disk; what they give is ranked there. The few that are kept pass through the other stages together. So memory
    does not grow with the number of crystals, but for their ids, each of which is used once.

    Args:
        settings: The stages.
        device: ``auto``, ``cpu`` or ``cuda``.
        exclude: Ids of crystals that are left out, such as those that were measured.

    Raises:
        ConfigError: A stage does not fit those before it: a column lacks, a rule is none.
        CheckpointError: A model can't be read.

    Example:
        >>> funnel = Funnel.load("configs/screen.yaml")  # doctest: +SKIP
        >>> funnel.run(blocks("candidates.jsonl"), "screen").why("mp-66")  # doctest: +SKIP
    """

    def __init__(self, settings: ScreenConfig, device: str = "auto", exclude: Iterable[str] = ()) -> None:
        self.settings = settings
        self._exclude = frozenset(exclude)
        known = Known.of_crystals(settings.columns)
        bound: list[Bound] = []
        for stage in settings.stages:
            step: Any = None
            if stage.kind == "unique":
                choose(SAMENESS, stage.by, "way to tell duplicates")
            else:
                step, known = STEPS[stage.kind](stage, known, device)
            bound.append(Bound(stage, step, known))
        first = next(place for place, entry in enumerate(bound) if isinstance(entry.step, Score))
        self._first = [entry for entry in bound[: first + 1] if entry.step is not None]
        self._ending = Ending(bound[first], [e for e in bound[:first] if e.step is None], bound[first + 1 :])
        self.known = known

    @classmethod
    def load(cls, path: str | Path, overrides: Iterable[str] = (), device: str = "auto") -> Funnel:
        """Read the settings from YAML."""
        return cls(load_screen(path, overrides), device)

    def run(
        self,
        crystals: Crystals,
        folder: str | Path,
        *,
        resume: bool = False,
        engine: str = "auto",
        workers: int = 0,
        counter: Counter | None = None,
        source: str = "",
    ) -> Screening:
        """Lead crystals through the stages and leave the results in a folder.

        A screen that was killed at any moment and is resumed ends with the same bytes as one that was not.

        Args:
            crystals: Crystals, or blocks of them (`cgnn.data.records.blocks`), which go to workers unread.
            folder: New or empty, unless a screen is resumed.
            resume: Go on with the screen in the folder.
            engine: An entry of `cgnn.data.engines.choice.ENGINES`; all give the same. On a GPU the work is done here.
            workers: Their number; 0 means one for each processor.
            counter: Is told how many more crystals are done.
            source: What the crystals are, such as the key of their file: a resumed screen must have the same.

        Raises:
            ConfigError: The folder holds something else, or the screen in it has other settings, models or crystals.
            DataError: No crystal can be used.
        """
        folder = Path(folder)
        self._begin(folder, resume, source)
        shelf = Shelf(folder / WORK, self._head_known.kinds)
        if not Screening.is_finished(folder):
            results = self._results(crystals, shelf, self._engine(engine), workers)
            with closing(results):
                for size in results:
                    if counter:
                        counter(size)
            self._warn_of_columns(shelf)
            write_results(folder, self.settings, self._ending.run(shelf, self._before), shelf, self.known)
        shelf.discard()
        return Screening(folder)

    @property
    def _head_known(self) -> Known:
        return self._first[-1].known

    @property
    def _before(self) -> list[tuple[str, str]]:
        return [(READ, READ), *((entry.settings.name, entry.settings.kind) for entry in self._first[:-1])]

    def _engine(self, name: str) -> str:
        steps = [entry.step for entry in self._first]
        return "serial" if any(step.is_on_gpu for step in steps if isinstance(step, Predict)) else name

    def _begin(self, folder: Path, resume: bool, source: str) -> None:
        """Check the folder, and write down what the screen is of."""
        mine = self._state(source)
        path = folder / STATE
        if not path.exists():
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                raise ConfigError(f"{folder}: is there already and holds no screen; choose another folder")
            write_json(path, mine)
            self.settings.save(folder / "screen.yaml")
            return
        if not resume:
            raise ConfigError(f"{folder}: holds a screen already; resume it (--resume) or choose another folder")
        try:
            theirs = orjson.loads(path.read_bytes())
        except (OSError, orjson.JSONDecodeError):
            theirs = {}
        changed = [name for name in mine if not isinstance(theirs, dict) or theirs.get(name) != mine[name]]
        if changed:
            raise ConfigError(f"{folder}: the screen in it had other {', '.join(changed)}; choose another folder")

    def _state(self, source: str) -> dict[str, Any]:
        from cgnn import __version__

        models = [stage.model for stage in self.settings.stages if stage.kind == "predict"]
        return {
            "version": __version__,
            "settings": self.settings.model_dump(mode="json"),
            "models": {model: content_key(model_file(model)) for model in models},
            "crystals": source,
            "excluded ids": sorted(self._exclude),
        }

    def _warn_of_columns(self, shelf: Shelf) -> None:
        """Warn of columns of the input that no crystal has: a misspelt name would drop all of them one by one."""
        for name, source in self.settings.columns.items():
            if all(np.isnan(shelf.read(number, [f"c.{name}"])[f"c.{name}"]).all() for number in shelf.numbers()):
                warnings.warn(f"columns.{name}: no crystal of the input has a number {source!r}", stacklevel=3)

    def _results(self, crystals: Crystals, shelf: Shelf, engine: str, workers: int) -> Generator[int, None, None]:
        """Put the results of the blocks that are not done on the shelf; yield how many crystals each had."""
        source, is_loose = _blocks(crystals)
        repeats = None if is_loose else Repeats()
        done = 0
        for number in shelf.numbers():
            table = shelf.read(number, ["material_id", "source", "digest"])
            _note(repeats, *table.values())
            yield len(table["material_id"])
            done = number + 1
        head = Head([entry.step for entry in self._first], self._head_known, self.settings.columns)
        seen = done
        with closing(run_engine(engine, head, islice(source, done, None), workers)) as results:
            for found in results:
                for row, reason in _note(repeats, found.ids, found.sources, found.digests).items():
                    found.drop(row, READ, reason)
                for row, name in enumerate(found.ids):
                    if name in self._exclude:
                        found.drop(row, READ, "left out: it was measured, or is not wanted")
                shelf.put(seen, found)
                seen += 1
                yield len(found.ids)
        if not seen:
            raise DataError("no crystals were given")


def _note(
    repeats: Repeats | None, ids: Sequence[str], sources: Sequence[str], digests: Sequence[bytes]
) -> dict[int, str]:
    """Return why rows repeat an id that was met before."""
    found = {}
    for row, (name, source, digest) in enumerate(zip(ids, sources, digests, strict=True)):
        aside = repeats.note(name, source, digest) if repeats and digest else None
        if aside is not None:
            found[row] = aside.reason
    return found


def _blocks(crystals: Crystals) -> tuple[Iterator[Any], bool]:
    """Return crystals in blocks, and whether they came one by one."""
    given = iter(crystals)
    first = list(islice(given, 1))
    whole: Iterator[Any] = chain(first, given)
    if not first or not isinstance(first[0], Item):
        return whole, False
    return _in_blocks(whole), True


def _in_blocks(items: Iterator[Any]) -> Iterator[Block]:
    while content := list(islice(items, _LOOSE)):
        yield Finished(content)
