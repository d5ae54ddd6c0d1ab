"""One bad record never costs the others; hostile ids stay ids."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import Document, Run, half_occupied, labels, overlap, read_table, structure, uranium, write_csv

COUNT, BAD = 200, 20


def _flat(document: Document) -> None:
    document["structure"]["lattice"]["matrix"][2] = document["structure"]["lattice"]["matrix"][1]


def _nowhere(document: Document) -> None:
    document["structure"]["sites"][0]["abc"] = [None, 0.0, 0.0]


def _no_element(document: Document) -> None:
    uranium(document)
    document["structure"]["sites"][0]["species"] = [{"element": "Qq", "occu": 1}]


def _huge_cell(document: Document) -> None:
    document["structure"]["lattice"]["matrix"] = (1e4 * np.eye(3)).tolist()


BAD_DOCUMENTS: dict[str, Callable[[Document], Any]] = {
    "overlap": overlap,
    "half occupied": half_occupied,
    "flat lattice": _flat,
    "missing coordinate": _nowhere,
    "no such element": _no_element,
    "huge cell": _huge_cell,
    "no structure": lambda document: document.pop("structure"),
    "null structure": lambda document: document.update(structure=None),
    "empty structure": lambda document: document["structure"].update(sites=[]),
    "formula as id": lambda document: document.update(material_id='=HYPERLINK("http://x")'),
    "line break in id": lambda document: document.update(material_id="a\nb"),
}
"""Kind of badness -> what it does to a document."""

BAD_CIFS: dict[str, Callable[[str], str]] = {
    "binary": lambda text: "\x00\x01\x02" + text[:50],
    "cut": lambda text: text[: text.index("_atom_site_fract_x")],
    "question mark": lambda text: _last_line(text, 5, "?"),
    "half occupied": lambda text: _last_line(text, 6, "0.5"),
    "words": lambda text: "the file is on my other laptop",
    "no such element": lambda text: _last_line(text, 0, "Qq0+"),
    "no cell": lambda text: text.replace("_cell_length_b", "_cell_lenght_b"),
}
"""Kind of badness -> what it does to a CIF text."""


def _last_line(text: str, column: int, value: str) -> str:
    *lines, last = text.rstrip().splitlines()
    words = last.split()
    words[column] = value
    return "\n".join([*lines, "  ".join(words), ""])


Row = tuple[str, Document, str]
"""Id, document, and the kind of badness (``""`` for none)."""


def _spoiled(document: Document, kind: str) -> Any:
    if kind == "no document":
        return 7
    copied = copy.deepcopy(document)
    if kind:
        BAD_DOCUMENTS[kind](copied)
    return copied


def write_json(path: Path, rows: list[Row]) -> None:
    path.write_text(json.dumps([_spoiled(document, kind) for _, document, kind in rows]))


def write_jsonl(path: Path, rows: list[Row]) -> None:
    lines = (json.dumps(_spoiled(document, kind if kind != "cut line" else "")) for _, document, kind in rows)
    cut = (line[: len(line) // 2] if row[2] == "cut line" else line for line, row in zip(lines, rows, strict=True))
    path.write_text("\n".join(cut) + "\n")


def _cif(document: Document, kind: str) -> str:
    text = structure(document).to(fmt="cif")
    return BAD_CIFS[kind](text) if kind else text


def write_cif_table(path: Path, rows: list[Row]) -> None:
    write_csv(path, [(name, _cif(document, kind), labels(document)) for name, document, kind in rows])


def write_folder(path: Path, rows: list[Row]) -> None:
    path.mkdir()
    for name, document, kind in rows:
        (path / f"{name}.cif").write_text(_cif(document, kind))


FORMS: dict[str, tuple[str, Callable[[Path, list[Row]], None], list[str]]] = {
    "JSON": ("set.json", write_json, [*BAD_DOCUMENTS, "no document"]),
    "JSON Lines": ("set.jsonl", write_jsonl, [*BAD_DOCUMENTS, "no document", "cut line"]),
    "CSV": ("set.csv", write_cif_table, list(BAD_CIFS)),
    "folder": ("set", write_folder, list(BAD_CIFS)),
}
"""Form -> (name, writer, the kinds of badness it can have)."""


@pytest.mark.parametrize("form", FORMS)
def test_twenty_bad_among_two_hundred(
    form: str,
    cgnn: Run,
    trained: Path,
    embedded_documents: list[Document],
    rng: np.random.Generator,
    tmp_path: Path,
) -> None:
    name, write, kinds = FORMS[form]
    documents = [{**d, "material_id": f"c{row:03d}"} for row, d in enumerate(embedded_documents[:COUNT])]
    places = rng.choice(COUNT, BAD, replace=False)
    bad = {int(place): kinds[number % len(kinds)] for number, place in enumerate(places)}
    rows: list[Row] = [(d["material_id"], d, bad.get(row, "")) for row, d in enumerate(documents)]
    good = [row for row in rows if not row[2]]
    for part, content in (("all", rows), ("good", good)):
        (tmp_path / part).mkdir()
        write(tmp_path / part / name, content)

    alone = cgnn("predict", trained, tmp_path / "good" / name, "--output", tmp_path / "good.csv")
    assert alone.code == 0
    done = cgnn("predict", trained, tmp_path / "all" / name, "--output", tmp_path / "all.csv")
    assert done.code == 3
    path = tmp_path / "all.set_aside.csv"
    assert done.err.splitlines()[-1] == f"180 crystals used, 20 set aside (all listed in {path})"

    predicted, expected = read_table(tmp_path / "all.csv"), read_table(tmp_path / "good.csv")
    assert [row["material_id"] for row in predicted] == [row[0] for row in good]
    for target in ("bulk_modulus", "shear_modulus"):
        values = [float(row[target]) for row in predicted]
        assert values == pytest.approx([float(row[target]) for row in expected], rel=1e-5)
    aside = read_table(path)
    file = "{}.cif" if form == "folder" else f"{name}:{{}}"
    sources = [file.format(f"c{place:03d}" if form == "folder" else place + 1) for place in sorted(bad)]
    assert [row["source"] for row in aside] == sources  # each once, in the order of the input
    assert all(row["stage"] in ("read", "graph") and row["code"] and row["reason"] for row in aside)


HOSTILE = [
    "../escape", "../../escape", "/tmp/escape", "a/../../escape", "..", ".", "~/escape", "C:\\escape", "CON", "aux.cif",
    "mp-1\x00", "mp-1\nmp-2,1,2", "=HYPERLINK(0)", "+1", "-1", "@SUM(A1)", "\uff1d1", "x" * 300, "mp-\u0430",
    'quo"te, comma', "%2e%2e%2f", "$(touch escape)", "; rm -rf escape", "<script>", " ", "",
]  # fmt: skip


def _tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_hostile_ids_stay_ids(
    cgnn: Run, trained: Path, config: Path, documents: list[Document], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a" / "b"
    place.mkdir(parents=True)
    monkeypatch.chdir(place)
    named = [{**document, "material_id": name} for document, name in zip(documents, HOSTILE, strict=False)]
    Path("set.json").write_text(json.dumps(named))

    assert cgnn("predict", trained, "set.json", "--output", "p.csv").code == 3
    accepted = [row["material_id"] for row in read_table(Path("p.csv"))]
    assert accepted == [name for name in HOSTILE if name in accepted]  # exact, and in order
    aside = read_table(Path("p.set_aside.csv"))
    assert len(accepted) + len(aside) == len(HOSTILE)
    refused = {"mp-1\x00", "mp-1\nmp-2,1,2", "=HYPERLINK(0)", "+1", "-1", "@SUM(A1)", "\uff1d1", "x" * 300, " ", ""}
    assert set(HOSTILE) - set(accepted) == refused
    assert {row["code"] for row in aside} == {"bad_id"}
    for table in (Path("p.csv"), Path("p.set_aside.csv")):
        cells = [cell for row in read_table(table) for cell in row.values()]
        assert not [cell for cell in cells if cell[:1] in ("=", "+", "@") or "\n" in cell]

    assert cgnn("evaluate", trained, "set.json", "--output", "e").code == 3
    assert [row["material_id"] for row in read_table(Path("e/predictions.csv"))] == accepted
    assert cgnn("train", config, "-o", "data.path=set.json", "-o", "train.epochs=1", "--output", "run").code == 3
    split = json.loads(Path("run/split.json").read_text())
    assert sorted(name for part in ("train", "val", "test") for name in split[part]) == sorted(accepted)
    assert _tree(tmp_path) == {"a", "a/b", *(f"a/b/{name}" for name in _tree(place))}
    run = {
        "config.yaml",
        "split.json",
        "split_report.json",
        "set_aside.csv",
        "log.txt",
        "history.jsonl",
        "metrics.json",
    }
    run |= {"predictions.csv", "predictions.csv.units.json", "best", "last"}
    assert {path.name for path in Path("run").iterdir()} == run


def test_ids_do_not_lead_out_of_a_folder(cgnn: Run, trained: Path, documents: list[Document], tmp_path: Path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    secret, inside = structure(documents[0]).to(fmt="cif"), structure(documents[1]).to(fmt="cif")
    (tmp_path / "outside.cif").write_text(secret)
    (folder / "inside.cif").write_text(inside)
    lines = ["../outside,1", f"{tmp_path}/outside,1", "inside,1", "inside/../../outside,1"]
    (folder / "id_prop.csv").write_text("\n".join(lines) + "\n")
    assert cgnn("predict", trained, folder, "--output", tmp_path / "p.csv").code == 3
    assert [row["material_id"] for row in read_table(tmp_path / "p.csv")] == ["inside"]
    assert {row["code"] for row in read_table(tmp_path / "p.set_aside.csv")} == {"bad_id"}
