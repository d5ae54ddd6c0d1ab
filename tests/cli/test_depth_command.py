import csv
import json

from cgnn.config import build
from cgnn.errors import Stopped
from cgnn.train.depth.study import TABLE, depth_study

GRID = [f"depth.{entry}" for entry in ("depths=[1,3]", "remedies=[none,pair_norm]", "seeds=[0]")]


def overridden(*changes):
    return [part for change in (*GRID, "train.epochs=1", *changes) for part in ("-o", change)]


def test_depth_leaves_a_table_and_a_report_with_a_verdict(cgnn, config, tmp_path):
    output = tmp_path / "study"
    result = cgnn("depth", config, *overridden(), "--output", output, "--workers", 1)
    assert result.code == 0, result.err
    verdicts = result.out.splitlines()
    assert len(verdicts) == 4 + 2  # two remedies, two targets; what the remedies reach for each target
    assert verdicts[4].startswith("bulk modulus at 3 layers: ")
    assert verdicts[0].startswith("bulk modulus, none: the error is smallest at ")
    assert str(output / TABLE) in result.err
    with open(output / TABLE, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 2 * (2 + 4)
    assert [entry["text"] for entry in json.loads((output / "verdict.json").read_text())] == verdicts
    page = (output / "report.html").read_text()
    assert all(line in page for line in verdicts)  # without characters that a page writes in another way
    assert page.count("data:image/png;base64,") == 4
    for name in ("errors-bulk_modulus", "errors-shear_modulus", "measures-1", "measures-3", "gradients-3"):
        assert (output / f"{name}.png").stat().st_size > 1000

    again = cgnn("depth", "--resume", "--output", output)
    assert again.code == 0, again.err
    assert again.out == result.out
    assert "epoch" not in again.err.replace("epochs", "")
    taken = cgnn("depth", config, *overridden(), "--output", output)
    assert taken.code == 2
    assert "is not empty" in taken.err


def test_a_stopped_study_reports_what_is_done(cgnn, config, tmp_path, monkeypatch):
    def stopping(settings, folder, *others):
        depth_study(build(settings.model_dump(mode="json"), ["depth.depths=[1]"]), folder, *others)
        raise Stopped(15)

    monkeypatch.setattr("cgnn.train.depth.depth_study", stopping)
    output = tmp_path / "study"
    result = cgnn("depth", config, *overridden("depth.remedies=[none]"), "--output", output, "--workers", 1)
    assert result.code == 143, result.err
    assert result.out.startswith("bulk modulus, none: one depth only, error ")
    assert (output / "report.html").exists()


def test_depth_of_an_unknown_remedy(cgnn, config, tmp_path):
    result = cgnn("depth", config, *overridden("depth.remedies=[residuel]"), "--output", tmp_path / "study")
    assert result.code == 2
    assert "unknown remedy 'residuel'; did you mean 'residual'" in result.err
