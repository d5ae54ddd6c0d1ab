"""The command ``screen``: from very many crystals to a short list."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cgnn.cli.commands import app
from cgnn.cli.endings import BAD_REQUEST, SOME_SET_ASIDE
from cgnn.cli.options import (
    Device,
    EngineName,
    Format,
    IdColumn,
    Output,
    Overrides,
    Strict,
    StructureColumn,
    Workers,
    read_crystals,
)
from cgnn.cli.voice import counting, crystals_text, say, show
from cgnn.errors import ConfigError

if TYPE_CHECKING:
    from cgnn.screen import Screening

_SHOWN = 10
"""So many finalists are printed; the tables hold all."""

ScreenSettings = Annotated[Path | None, typer.Argument(help="Stages (YAML), such as configs/screen.yaml.")]
Candidates = Annotated[Path | None, typer.Argument(help="Crystals: a file or a folder.")]
Why = Annotated[str | None, typer.Option("--why", metavar="ID", help="Say what became of a crystal of --output.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the screen in --output.")]
Link = Annotated[str, typer.Option("--link", metavar="URL", help="Where a click on a crystal leads; {id} is its id.")]


@app.command()
def screen(
    config: ScreenSettings = None,
    candidates: Candidates = None,
    output: Output = Path("screens/latest"),
    why: Why = None,
    override: Overrides = None,
    resume: Resume = False,
    link: Link = "",
    device: Device = "auto",
    format: Format = "auto",
    id_column: IdColumn = None,
    structure_column: StructureColumn = None,
    engine: EngineName = "auto",
    workers: Workers = 0,
    strict: Strict = False,
) -> None:
    """Lead crystals through stages to a ranked short list; every rejected one can be asked why."""
    from cgnn.screen import Funnel, Screening

    if why is not None:
        show(Screening.load(output).why(why))
        return
    if config is None or candidates is None:
        raise ConfigError("nothing to screen: give stages (YAML) and crystals, or --why ID and --output")
    from cgnn.data.store.content import content_key

    crystals = read_crystals(candidates, format, id_column, structure_column)
    funnel = Funnel.load(config, override or [], device)
    source = f"{content_key(candidates)} {format} {id_column} {structure_column}"
    with counting() as counter:
        found = funnel.run(
            crystals, output, resume=resume, engine=engine, workers=workers, counter=counter, source=source
        )
    _report(found, strict, link)


def _report(found: Screening, strict: bool, link: str) -> None:
    """Print the counts and the first finalists; end with the code that says whether crystals could not be read."""
    counts = found.counts
    width = max(len(count["stage"]) for count in counts)
    show("\n".join(f"{count['stage']:{width}}  {count['before']:>9,} -> {count['after']:>9,}" for count in counts))
    table = found.table
    shown = [name for name in ("rank", "material_id", "formula", *_of_interest(list(table.columns))) if name in table]
    if len(table):
        show(table[shown].head(_SHOWN).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    emptied = next((count for count in counts if count["before"] and not count["after"]), None)
    if emptied is not None:
        say(f"no finalists: stage {emptied['stage']!r} dropped all {crystals_text(emptied['before'])} (--why ID)")
    from cgnn.cli.screen_pictures import write_pictures

    written = write_pictures(found, link)
    say(f"finalists: {', '.join(map(str, [found.folder / 'ranked.csv', *written]))}")
    unusable = sum(count["before"] - count["after"] for count in counts if count["kind"] in ("read", "predict"))
    if unusable:
        where = next(path.name for path in sorted(found.folder.glob("rejected.*")))
        say(f"{'error: --strict: ' if strict else ''}{crystals_text(unusable)} could not be used (listed in {where})")
        raise typer.Exit(BAD_REQUEST if strict else SOME_SET_ASIDE)


def _of_interest(columns: list[str]) -> list[str]:
    """Return the columns of medians and values without those of their errors, as many as a line holds."""
    endings = ("_std", "_lower", "_upper", "_p5", "_p16", "_p50", "_p84", "_p95")
    first = ("hardness", "toughness", "debye", "bulk", "shear", "rank_score")
    return [name for name in columns if name.startswith(first) and not name.endswith(endings)]
