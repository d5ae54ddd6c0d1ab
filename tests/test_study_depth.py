"""The stored study of depth becomes tables and sentences of its document."""

import sys

import pytest
from test_benchmarks import RUN

from cgnn.errors import DataError
from cgnn.model.depth import MEASURES
from cgnn.train.depth.table import write_table


@pytest.fixture
def study_depth(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(RUN.parent))
    import study_depth

    (tmp_path / "studies").mkdir()
    monkeypatch.setattr(study_depth, "STUDIES", tmp_path / "studies")
    return study_depth


def rows(errors):
    """A table of one target: depth -> test errors of the seeds."""
    found = []
    for depth, values in errors.items():
        for seed, value in enumerate(values):
            for layer in range(depth + 1):
                row = {"depth": depth, "remedy": "residual", "seed": seed, "layer": layer, "width": 8}
                row |= {"parameters": 100, **dict.fromkeys(MEASURES, 2.0), "gradient_start": 1.0}
                found.append(row | {"train_y": 0.1, "test_y": value, "epoch": 3, "seconds": 1800.0})
    return found


def test_a_run_is_stored_and_written_into_the_document(study_depth, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    write_table(tmp_path / "run" / "depth.csv", rows({1: [0.5, 0.7], 4: [0.2, 0.2]}))
    written = {}
    monkeypatch.setattr(study_depth, "between_markers", lambda *place: written.update({place[:2]: place[2]}))
    monkeypatch.setattr(sys, "argv", ["study_depth.py", "--run", str(tmp_path / "run"), "--table"])
    study_depth.main()
    text = written["docs/depth.md", "depth"]
    assert "4 networks, 2 seeds, 2.0 hours" in text
    assert "| `residual` | 0.6000 ± 0.1414 | 0.2000 ± 0.0000 |" in text
    assert "- y, residual: the error is smallest at 4 layers (0.2) and does not rise" in text
    assert (tmp_path / "studies" / "depth.csv").read_bytes() == (tmp_path / "run" / "depth.csv").read_bytes()


def test_what_is_no_table_is_not_stored(study_depth, tmp_path, monkeypatch):
    (tmp_path / "depth.csv").write_text("a,b\n1,2\n")
    monkeypatch.setattr(sys, "argv", ["study_depth.py", "--run", str(tmp_path)])
    with pytest.raises(DataError, match="no column"):
        study_depth.main()
    assert not list((tmp_path / "studies").iterdir())
