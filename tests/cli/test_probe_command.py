import csv
import json

import numpy as np
import pytest

from cgnn.cli.probe import _evenly
from cgnn.data.records import Record


def test_probe_leaves_tables_figures_and_a_verdict(cgnn, trained, export, tmp_path):
    output = tmp_path / "probe"
    result = cgnn(
        "probe", trained, export, "--output", output, "--crystals", 2, "--neighbors", "cgcnn", "--also", trained
    )
    assert result.code == 0, result.err
    said = result.out.splitlines()
    subjects = ("nearest", "cgcnn", "run, trained with nearest")
    starts = [f"{target}, {name}: " for name in subjects for target in ("bulk modulus", "shear modulus")]
    assert sorted(line[: len(start)] for line, start in zip(sorted(said), sorted(starts), strict=True)) == sorted(
        starts
    )
    with open(output / "responses.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * 3 * 4 * 2 * 6  # crystals, subjects, perturbations, targets, amplitudes
    assert {row["unit"] for row in rows} == {"log10(GPa)"}
    with open(output / "jumps.csv", newline="") as handle:
        jumps = list(csv.DictReader(handle))
    assert len(jumps) == 2 * 3 * 4 * 2
    same = [[row["jump"] for row in jumps if row["neighbors"] == subjects[place]] for place in (0, 2)]
    assert same[0] == same[1]
    assert sorted(entry["text"] for entry in json.loads((output / "verdict.json").read_text())) == sorted(said)
    for target in ("bulk_modulus", "shear_modulus"):
        assert (output / f"responses-{target}.png").stat().st_size > 1000


def test_probe_without_a_usable_crystal(cgnn, trained, tmp_path):
    (tmp_path / "bad.cif").write_text("nothing of a crystal")
    result = cgnn("probe", trained, tmp_path / "bad.cif", "--output", tmp_path / "probe")
    assert result.code == 2
    assert "set aside: bad" in result.err
    assert "no crystal can be used" in result.err


@pytest.mark.parametrize("number", [1, 5, 19, 20, 83, 1000])
def test_crystals_are_chosen_evenly_from_a_stream_of_any_length(number):
    records = [Record(str(place), crystal=None, source="") for place in range(number)]
    chosen = [int(record.material_id) for record in _evenly(iter(records), 5)]
    assert len(chosen) == min(number, 5)
    gaps = np.diff([*chosen, number])
    assert gaps.max() <= 2 * gaps.min()
