"""Results as tables of README.md and as a figure."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- from results.json: begin -->", "<!-- from results.json: end -->"
FIGURE = Path("figures") / "growth.png"
Results = dict[str, dict[str, Any]]


def line(row: dict[str, Any]) -> str:
    """Return one result on one line."""
    if row["kind"] == "ratio":
        floor = f", at least {row['floor']:g}" if row["floor"] else ""
        spread = f"{number(row['low'])} to {number(row['high'])}"
        times = f"{number(row['baseline'])} against {number(row['ours'])} {row['unit']}"
        return f"{row['work']}: {number(row['ratio'])} x ({spread}{floor}); {times}"
    if row["kind"] == "seconds":
        return f"{row['work']}: {number(row['seconds'])} s, {number(row['per_second'])} per second"
    if row["kind"] == "growth":
        slopes = ", ".join(f"{name} {value:.2f}" for name, value in row["slopes"].items())
        return f"{row['work']}: time grows with the power {slopes}"
    return f"{row['work']}: skipped, {row['note']}"


def number(value: float) -> str:
    """Return a number with three significant digits, no exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    digits = 1 if value >= 10 else 2 if value >= 1 else 3 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def write_readme(results: Results, folder: Path) -> None:
    """Write the tables between the two markers of README.md here and in the folder above, and the figure."""
    _replace(folder / "README.md", BEGIN, END, tables(results))
    begin, end = (marker.replace("from ", "from benchmarks/") for marker in (BEGIN, END))
    _replace(folder.parent / "README.md", begin, end, summary(results))
    growth = [row for row in results.values() if row["kind"] == "growth"]
    if growth:
        draw(growth, folder / FIGURE)


def _replace(path: Path, begin: str, end: str, content: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    path.write_text(f"{before}{begin}\n\n{content}\n\n{end}{after}", encoding="utf-8")


def summary(results: Results) -> str:
    """Return the results for which something had to be reached as a short Markdown table."""
    rows = [(name, row) for name, row in results.items() if row.get("floor")]
    table = _table(
        ["work", "against", "faster", "command"],
        (
            [row["work"], row["against"], f"**{number(row['ratio'])} x**", f"`python benchmarks/run.py {name}`"]
            for name, row in rows
        ),
    )
    seconds = [line(row) + " (`python benchmarks/run.py " + name + "`)" for name, row in results.items()
               if row["kind"] == "seconds"]  # fmt: skip
    return "\n\n".join([table, *(f"{text}." for text in seconds)])


def tables(results: Results) -> str:
    """Return all results as Markdown."""
    ratios = {name: row for name, row in results.items() if row["kind"] == "ratio"}
    parts = [_table(["work", "against", "unit", "theirs", "ours", "ratio", "spread", "floor", "name"],
                    (_ratio(name, row) for name, row in ratios.items()))]  # fmt: skip
    others = [row for row in results.values() if row["kind"] in ("seconds", "skipped")]
    parts += [f"- {line(row)}" for row in others]
    parts += [_growth(row) for row in results.values() if row["kind"] == "growth"]
    parts.append(_origin(results))
    return "\n\n".join(parts)


def draw(growth: list[dict[str, Any]], path: Path) -> None:
    """Draw time against size, on logarithmic axes, with straight lines of power one for the eye; memory beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(row, key) for row in growth for key in ("times", "memory") if key in row]
    figure, axes = pyplot.subplots(1, len(panels), figsize=(5 * len(panels), 4.2), layout="constrained", squeeze=False)
    for axis, (row, key) in zip(axes[0], panels, strict=True):
        for name, values in row[key].items():
            axis.loglog(row["sizes"], values, marker="o", label=name.replace("`", ""))
        if key == "times":
            sizes = [row["sizes"][0], row["sizes"][-1]]
            top = max(values[-1] for values in row["times"].values())
            axis.loglog(sizes, [1.8 * top * size / sizes[1] for size in sizes], "k:", linewidth=1, label="linear")
        axis.set_xlabel(row["size"])
        axis.set_ylabel(f"time ({row['unit']})" if key == "times" else "peak memory above the imports (MiB)")
        axis.set_title(row["work"] if key == "times" else "memory", fontsize="medium")
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _ratio(name: str, row: dict[str, Any]) -> list[str]:
    floor = f"{row['floor']:g}" if row["floor"] else ""
    return [
        row["work"], row["against"], row["unit"], number(row["baseline"]), number(row["ours"]),
        f"**{number(row['ratio'])}**", f"{number(row['low'])}-{number(row['high'])}", floor, f"`{name}`",
    ]  # fmt: skip


def _growth(row: dict[str, Any]) -> str:
    memory = row.get("memory", {})
    header = [row["size"], *(f"{name} ({row['unit']})" for name in row["times"]), *(f"{name} (MiB)" for name in memory)]
    columns = [*row["times"].values(), *memory.values()]
    body = [
        [f"{size:,}", *(number(column[place]) for column in columns)] for place, size in enumerate(row["sizes"])
    ]  # fmt: skip
    return f"**{line(row)}** ({row['note']})\n\n{_table(header, body)}"


def _origin(results: Results) -> str:
    """Say on what, when and by what commands the figures were made."""
    machines: dict[str, list[str]] = {}
    for name, row in results.items():
        machine = ", ".join(f"{key} {value}" for key, value in row["machine"].items())
        machines.setdefault(machine, []).append(f"`{name}` {row['date']}")
    return "\n\n".join(
        f"Measured by `python benchmarks/run.py NAME` on: {machine}. NAME and date: {', '.join(rows)}."
        for machine, rows in machines.items()
    )


def _table(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
