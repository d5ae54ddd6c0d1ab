import csv
import json

import pandas as pd
import pytest


def test_explain_leaves_tables_and_pictures(cgnn, trained, export, tmp_path):
    output = tmp_path / "explanation"
    result = cgnn("explain", trained, export, "--output", output, "--crystals", 2)
    assert result.code == 0, result.err
    said = result.out.splitlines()
    assert len(said) == 4
    assert said[0].startswith("emt-Ag-fcc, bulk modulus: ")
    assert "log10(GPa); atoms (" in said[0]
    with open(output / "atoms.csv", newline="") as handle:
        atoms = list(csv.DictReader(handle))
    with open(output / "bonds.csv", newline="") as handle:
        bonds = list(csv.DictReader(handle))
    assert [row["element"] for row in atoms] == ["Ag", "Ag", "Pd", "Pd", "Pd", "Pd"]
    assert {row["target"] for row in bonds} == {"bulk_modulus", "shear_modulus"}
    assert json.loads((output / "bonds.csv.units.json").read_text()) == {"distance": "Å"}
    names = sorted(path.name for path in output.glob("*.png"))
    assert names[:2] == ["1-emt-Ag-fcc-bulk_modulus.png", "2-emt-Ag-fcc-shear_modulus.png"]
    only = cgnn("explain", trained, export, "--output", tmp_path / "b", "--crystals", 1, "--target", "shear_modulus")
    assert only.out.splitlines() == said[1:2]


def test_explain_keeps_pictures_in_their_folder(cgnn, trained, documents, tmp_path):
    document = documents[3] | {"material_id": "../../away"}
    (tmp_path / "data.json").write_text(json.dumps([document]))
    output = tmp_path / "deep" / "explanation"
    result = cgnn("explain", trained, tmp_path / "data.json", "--output", output, "--target", "bulk_modulus")
    assert result.code == 0, result.err
    assert [path.name for path in output.glob("*.png")] == ["1-______away-bulk_modulus.png"]


@pytest.mark.parametrize("command", ["explain", "embed"])
def test_without_a_usable_crystal(command, cgnn, trained, tmp_path):
    (tmp_path / "bad.cif").write_text("nothing of a crystal")
    result = cgnn(command, trained, tmp_path / "bad.cif", "--output", tmp_path / "out")
    assert result.code == 2
    assert "no crystal can be used" in result.err


def test_embed_leaves_features_and_maps(cgnn, trained, export, tmp_path):
    output = tmp_path / "embedding"
    result = cgnn("embed", trained, export, "--output", output)
    assert result.code == 0, result.err
    table = pd.read_parquet(output / "embedding.parquet")
    assert list(table.columns[:5]) == ["material_id", "x", "y", "bulk_modulus", "shear_modulus"]
    assert [name for name in table.columns if name.startswith("feature_")] == [f"feature_{i}" for i in range(8)]
    assert len(table) == 40
    assert "40 crystals used, none set aside" in result.err
    for target in ("bulk_modulus", "shear_modulus"):
        assert (output / f"map-{target}.png").stat().st_size > 1000
