"""The command line called in this process, and folders of good and broken files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from samples import (
    Document,
    Outcome,
    Run,
    changed,
    half_occupied,
    labels,
    overlap,
    soft_label,
    structure,
    unlabelled,
    uranium,
    write_csv,
)


@pytest.fixture
def cgnn(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process, as ``cgnn`` does in a shell."""
    from cgnn.cli import main

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        with pytest.raises(SystemExit, match=r"^\d+$") as ended:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, shown.out, shown.err)

    return run


@pytest.fixture(scope="session")
def documents(embedded_documents: list[Document]) -> list[Document]:
    """Forty labelled crystals, the same as ``export``."""
    return embedded_documents[::12][:40]


@pytest.fixture(scope="session")
def config(small_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings of a run that takes a second, as a file."""
    path = tmp_path_factory.mktemp("configs") / "small.yaml"
    path.write_text(yaml.safe_dump(small_settings))
    return path


@pytest.fixture(scope="session")
def mess(documents: list[Document], trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files as they come: good, broken, empty, of another kind."""
    folder = tmp_path_factory.mktemp("mess")
    few = documents[:12]
    bad = changed(few, {1: uranium, 2: half_occupied, 3: overlap, 4: soft_label})
    no_labels = changed(few, dict.fromkeys(range(12), unlabelled))
    texts = {
        "good.json": json.dumps(few),
        "bad.json": json.dumps(bad),
        "unseen.json": json.dumps(changed(few, {1: uranium})),
        "nolabel.json": json.dumps(no_labels),
        "lines.jsonl": "\n".join(map(json.dumps, few)),
        "empty.json": "",
        "emptylist.json": "[]",
        "junk.json": "hello",
        "page.json": "<html><body>504</body></html>",
        "nocif.csv": "a,b\n1,2\n",
        "x.weird": "abc",
        "broken.yaml": "targets: [a\n",
        "list.yaml": "- 1\n",
        "nothing.yaml": "",
        "texts/readme.txt": "hi",
        "mixed/bad.cif": "data_x\n_cell_length_a banana\n",
        "mixed/empty.cif": "",
        "a_file": "x",
    }
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    (folder / "good.json.gz").write_bytes(gzip.compress((folder / "good.json").read_bytes()))
    # packed without compression: half the bytes hold half the crystals
    whole = gzip.compress((folder / "good.json").read_bytes(), compresslevel=0)
    (folder / "cut.json.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "nothing").mkdir()
    (folder / "cifs").mkdir()
    for document in few[:4]:
        cif = structure(document).to(fmt="cif")
        (folder / "cifs" / f"{document['material_id']}.cif").write_text(cif)
        (folder / "mixed" / f"{document['material_id']}.cif").write_text(cif)
    (folder / "one.cif").write_text(cif)
    write_csv(folder / "table.csv", [(d["material_id"], structure(d).to(fmt="cif"), labels(d)) for d in few])
    model = bytearray((trained / "best" / "model.safetensors").read_bytes())
    model[len(model) // 2] ^= 8
    (folder / "damaged.safetensors").write_bytes(model)
    return folder
