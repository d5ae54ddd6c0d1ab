"""How commands end: what is said of crystals, and the exit code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cgnn.cli.voice import crystals_text, say

if TYPE_CHECKING:
    from cgnn.data.items import SetAside

DONE, FAILED, BAD_REQUEST, SOME_SET_ASIDE = 0, 1, 2, 3
_LISTED = 5
"""So many crystals or flags are shown one by one; the files hold all."""


def say_flags(flags: Mapping[str, Sequence[str]]) -> None:
    """Say each flag with the crystals that have it; the column ``flags`` holds all."""
    said = sorted(flags.items(), key=lambda pair: -len(pair[1]))
    for flag, ids in said[:_LISTED]:
        others = f" and {len(ids) - 3} more" if len(ids) > 3 else ""
        say(f"warning: {', '.join(ids[:3])}{others}: {flag}")
    if len(said) > _LISTED:
        rest = sum(len(ids) for _, ids in said[_LISTED:])
        say(f"warning: {crystals_text(rest)} with other flags: column 'flags'")


def finish_listed(used: int, set_aside: Sequence[SetAside], path: Path, strict: bool) -> None:
    """List what was set aside in a file, and finish."""
    from cgnn.data.tables import write_set_aside

    if set_aside:
        write_set_aside(path, set_aside)
    else:
        path.unlink(missing_ok=True)  # of an earlier call
    finish(used, set_aside, path, strict)


def finish(used: int, set_aside: Sequence[SetAside], path: Path, strict: bool = False) -> None:
    """Say how many crystals were used; end with the exit code that says whether some were set aside."""
    if not set_aside:
        say(f"{crystals_text(used)} used, none set aside")
        return
    for crystal in set_aside[:_LISTED]:
        name = f"{crystal.material_id} ({crystal.source})" if crystal.material_id else crystal.source
        say(f"set aside: {name}: {crystal.reason}")
    say(
        f"{'error: --strict: ' if strict else ''}{crystals_text(used)} used, {len(set_aside)} set aside "
        f"(all listed in {path})"
    )
    raise typer.Exit(BAD_REQUEST if strict else SOME_SET_ASIDE)
