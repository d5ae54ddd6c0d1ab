"""Each command on tens of crystals: what it writes, what it says, how it ends."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml
from samples import Document, Run, read_table, structure, write_parquet

SCORES = {"n"} | {
    f"{score}{scale}" for score in ("mae", "rmse", "r2", "baseline_mae") for scale in ("", "_log10")
}  # fmt: skip
TARGETS = ("bulk_modulus", "shear_modulus")
PNG = b"\x89PNG"


def test_train_leaves_a_run(cgnn: Run, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "runs" / "one"
    done = cgnn("train", config, "--output", run, "--seed", 7, "--device", "cpu")
    assert done.code == 0
    assert re.search(r"shear_modulus +MAE +\S+ +\S+ +GPa", done.out)
    lines = done.err.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/3", "2/3", "3/3"]
    assert lines[-2:] == [f"model: {run / 'best' / 'model.safetensors'}", "40 crystals used, none set aside"]
    assert (run / "log.txt").read_text().splitlines() == lines
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["seed"] == 7
    metrics = json.loads((run / "metrics.json").read_text())
    assert {part: set(scores) for part, scores in metrics.items()} == {part: set(TARGETS) for part in ("val", "test")}
    assert set(metrics["test"]["bulk_modulus"]) == SCORES
    rows = read_table(run / "predictions.csv")
    assert [row["part"] for row in rows] == ["val"] * 8 + ["test"] * 8
    assert len((run / "history.jsonl").read_text().splitlines()) == 3
    assert read_table(run / "set_aside.csv") == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_train_does_not_overwrite_and_resumes(cgnn: Run, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cgnn("train", config, "--output", run, "-o", "train.epochs=1").code == 0
    before = (run / "best" / "model.safetensors").read_bytes()
    again = cgnn("train", config, "--output", run)
    assert again.code == 2
    assert re.search("run.*is not empty.*--resume", again.err)
    assert cgnn("train", "--resume", "--output", run).code == 0  # a finished run is left as it is
    assert (run / "best" / "model.safetensors").read_bytes() == before
    other = cgnn("train", config, "--resume", "--output", run)
    assert other.code == 2
    assert "train.epochs was 1, is 3" in other.err


def test_a_misspelt_setting_does_not_block_the_folder(cgnn: Run, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert cgnn("train", config, "--output", run, "-o", "train.loss=mea").code == 2
    assert cgnn("train", config, "--output", run, "-o", "train.epochs=1").code == 0


@pytest.mark.parametrize("command", ["train", "cv"])
def test_bad_crystals_in_training(command: str, cgnn: Run, config: Path, mess: Path, tmp_path: Path) -> None:
    arguments = (command, config, "-o", f"data.path={mess / 'bad.json'}", "-o", "train.epochs=1")
    arguments += ("--folds", 2) if command == "cv" else ()
    done = cgnn(*arguments, "--output", tmp_path / "run")
    folder = tmp_path / "run" / ("fold-0" if command == "cv" else "")
    assert done.code == 3
    assert done.err.splitlines()[-1] == f"9 crystals used, 3 set aside (all listed in {folder / 'set_aside.csv'})"
    codes = {(row["stage"], row["code"]) for row in read_table(folder / "set_aside.csv")}
    assert codes == {("read", "disordered"), ("graph", "overlap"), ("label", "bad_label")}
    strict = cgnn(*arguments, "--output", tmp_path / "strict", "--strict")
    assert strict.code == 2
    assert "epoch" not in strict.err.replace("1 epochs", "")  # it ends before hours of training
    assert not (tmp_path / "strict").exists()
    assert len(read_table(tmp_path / "strict.set_aside.csv")) == 3


def test_cv_reports_mean_and_spread(cgnn: Run, config: Path, tmp_path: Path) -> None:
    arguments = ("cv", config, "-o", "train.epochs=1", "--folds", 2, "--output", tmp_path / "cv", "--seed", 3)
    done = cgnn(*arguments)
    assert done.code == 0
    assert re.search(r"bulk_modulus +MAE \(log10\) +\d\S* +± \S+ +\S+ +log10\(GPa\)", done.out)
    assert [line[:8] for line in done.err.splitlines() if line.startswith("fold")] == ["fold 1/2", "fold 2/2"]
    result = json.loads((tmp_path / "cv" / "cv.json").read_text())
    entry = result["shear_modulus"]["mae"]
    assert entry["mean"] == pytest.approx(sum(entry["folds"]) / 2)
    assert entry["std"] == pytest.approx(abs(entry["folds"][0] - entry["folds"][1]) / 2**0.5)
    tested = [row for fold in (0, 1) for row in read_table(tmp_path / "cv" / f"fold-{fold}" / "predictions.csv")]
    assert len({row["material_id"] for row in tested if row["part"] == "test"}) == 40
    resumed = cgnn(*arguments, "--resume")
    assert (resumed.code, resumed.out) == (0, done.out)
    assert "fold 1/2" not in resumed.err


def test_evaluate_writes_scores_table_and_pictures(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    done = cgnn("evaluate", trained, mess / "bad.json", "--output", tmp_path / "e")
    assert done.code == 3
    assert re.search(r"bulk_modulus +R² \(log10\)", done.out)
    assert re.search(r"warning: \S+: elements not in training: U", done.err)
    metrics = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert set(metrics) == set(TARGETS)
    for scores in metrics.values():
        assert set(scores) == SCORES
        assert scores["n"] == 9
    rows = read_table(tmp_path / "e" / "predictions.csv")
    assert list(rows[0]) == ["material_id", *TARGETS, "flags", "bulk_modulus_true", "shear_modulus_true"]
    error = sum(abs(float(row["bulk_modulus"]) - float(row["bulk_modulus_true"])) for row in rows) / 9
    assert metrics["bulk_modulus"]["mae"] == pytest.approx(error, rel=1e-4)
    assert json.loads((tmp_path / "e" / "predictions.csv.units.json").read_text())["bulk_modulus_true"] == "GPa"
    assert len(read_table(tmp_path / "e" / "set_aside.csv")) == 3
    assert all((tmp_path / "e" / f"parity_{name}.png").read_bytes().startswith(PNG) for name in TARGETS)


def test_evaluate_finds_a_place_for_its_results(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    model = shutil.copy(trained / "best" / "model.safetensors", tmp_path)
    assert cgnn("evaluate", model, mess / "good.json.gz").code == 0
    assert (tmp_path / "evaluation-good" / "metrics.json").is_file()
    refused = cgnn("evaluate", trained, mess / "good.json", "--output", trained)
    assert refused.code == 2
    assert "is a run folder" in refused.err


def test_predict_writes_physical_units(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    from cgnn import Predictor

    output = tmp_path / "new" / "p.csv"
    done = cgnn("predict", trained, mess / "unseen.json", "--output", output)
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines() == [
        "warning: emt-Pd-hcp: elements not in training: U",
        f"predictions: {output}",
        "12 crystals used, none set aside",
    ]
    rows = read_table(output)
    assert list(rows[0]) == ["material_id", *TARGETS, "flags"]
    assert [row["flags"] for row in rows] == ["", "elements not in training: U"] + [""] * 10
    frame = Predictor.load(trained).predict(mess / "unseen.json").to_frame()
    for name in TARGETS:  # GPa, not log10
        assert [float(row[name]) for row in rows] == pytest.approx(frame[name].to_list(), rel=1e-6)
        assert all(5 < float(row[name]) < 500 for row in rows)
    assert json.loads(output.with_name("p.csv.units.json").read_text()) == dict.fromkeys(TARGETS, "GPa")


FORMS = ["good.json", "good.json.gz", "lines.jsonl", "table.csv", "one.cif", "cifs", "crystals.parquet"]


@pytest.mark.parametrize("form", FORMS)
def test_predict_reads(
    form: str, cgnn: Run, trained: Path, mess: Path, documents: list[Document], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "crystals.parquet", documents[:12])
    place = tmp_path if form.endswith("parquet") else mess
    done = cgnn("predict", trained / "best" / "model.safetensors", place / form, "--output", tmp_path / "p.csv")
    assert done.code == 0
    rows = {row["material_id"]: float(row["bulk_modulus"]) for row in read_table(tmp_path / "p.csv")}
    expected = {"one.cif": ["one"], "cifs": sorted(d["material_id"] for d in documents[:4])}
    assert list(rows) == expected.get(form, [d["material_id"] for d in documents[:12]])
    cgnn("predict", trained, mess / "good.json", "--output", tmp_path / "q.csv")
    known = {row["material_id"]: float(row["bulk_modulus"]) for row in read_table(tmp_path / "q.csv")}
    if form == "one.cif":
        known["one"] = known[documents[3]["material_id"]]
    assert rows == pytest.approx({name: known[name] for name in rows}, rel=1e-5)


def test_predict_writes_parquet_with_units(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    assert cgnn("predict", trained, mess / "good.json", "--output", tmp_path / "p.parquet").code == 0
    table = pq.read_table(tmp_path / "p.parquet")
    assert table.column_names == ["material_id", *TARGETS, "flags"]
    assert table.schema.field("shear_modulus").metadata[b"unit"] == b"GPa"


def test_predict_names_columns(cgnn: Run, trained: Path, documents: list[Document], tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    cif = structure(documents[0]).to(fmt="cif").replace('"', '""')
    table.write_text(f'who,what\nmine,"{cif}"\n')
    assert "--structure-column" in cgnn("predict", "--help").out
    done = cgnn(
        "predict", trained, table, "--output", tmp_path / "p.csv", "--id-column", "who", "--structure-column", "what"
    )
    assert done.code == 0
    assert read_table(tmp_path / "p.csv")[0]["material_id"] == "mine"


def test_bad_files_among_good_ones(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    output, aside = tmp_path / "p.csv", tmp_path / "p.set_aside.csv"
    done = cgnn("predict", trained, mess / "mixed", "--output", output)
    assert done.code == 3
    assert done.err.splitlines()[-1] == f"4 crystals used, 2 set aside (all listed in {aside})"
    assert len(read_table(output)) == 4
    assert {row["source"] for row in read_table(aside)} == {"bad.cif", "empty.cif"}
    strict = cgnn("predict", trained, mess / "mixed", "--output", output, "--strict")
    assert strict.code == 2
    assert strict.err.splitlines()[-1].startswith("error: --strict: 4 crystals used, 2 set aside")
    assert cgnn("predict", trained, mess / "cifs", "--output", output, "--strict").code == 0
    assert not aside.exists()  # of the earlier call


def test_info(cgnn: Run, trained: Path) -> None:
    done = cgnn("info", trained)
    assert done.code == 0
    facts = dict(line.split(maxsplit=1) for line in done.out.split("\n\n")[0].splitlines() if "  " in line)
    assert facts["targets"] == ("bulk_modulus (GPa, learned as log10), shear_modulus (GPa, learned as log10)")
    assert facts["network"].startswith("width 8, depth 2, ")
    assert facts["graphs"] == "nearest, k 12, cutoff 10 Å"
    assert "24 crystals, validated on 8" in done.out
    assert re.search(r"bulk_modulus +MAE +\d\S* +GPa", done.out)
    assert cgnn("info", trained / "best").out == done.out


def test_main_may_be_called_again_and_again(cgnn: Run, trained: Path) -> None:
    before = (warnings.showwarning, list(warnings.filters))
    assert cgnn("info", trained).out == cgnn("info", trained).out
    assert cgnn("--version").out == "cgnn 0.1.0\n"
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_help_is_light() -> None:
    """Help must not wait for torch; the modules loaded say so, whatever the machine."""
    code = "import sys; from cgnn.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(command in done.stdout for command in ("train", "cv", "evaluate", "predict", "info", "fetch"))
    heavy = {"torch", "torch_geometric", "lightning", "pymatgen", "numpy", "pandas", "matplotlib", "mp_api", "tqdm"}
    assert not heavy & set(done.stderr.split())


def test_the_installed_command_and_the_module_are_the_same(mess: Path, trained: Path) -> None:
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="cgnn")
    assert command.value == "cgnn.cli:main"
    call = [sys.executable, "-W", "error", "-m", "cgnn.cli", "predict", str(trained), str(mess / "nosuch.json")]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: \S+nosuch\.json: no such file.*\n", done.stderr)


def test_commands_are_short() -> None:
    tree = ast.parse((Path(__file__).parents[2] / "cgnn" / "cli" / "commands.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    lengths = {node.name: (node.end_lineno or 0) - node.lineno + 1 for node in functions}
    assert max(lengths.values()) <= 25, lengths


@pytest.mark.parametrize(
    ("options", "query", "fields", "gnome"),
    [
        ([], {"k_vrh": (0, 1000)}, None, False),
        (["--all", "--include-gnome"], {}, None, True),
        (["--fields", "structure, band_gap"], {"k_vrh": (0, 1000)}, ["structure", "band_gap"], False),
    ],
)
def test_fetch_asks_for_what_was_said(
    options: list[str], query: object, fields: object, gnome: bool, cgnn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The download itself is tested in tests/data/test_mp.py."""
    from cgnn.data import mp

    asked: list[object] = []
    monkeypatch.setattr(mp, "fetch", lambda *words, **named: asked.extend([*words, named]) or {"count": 1200})
    done = cgnn("fetch", "export.json.gz", *options)
    assert (done.code, done.out, done.err) == (0, "", "1,200 crystals: export.json.gz\n")
    assert asked == [Path("export.json.gz"), query, fields or mp.FIELDS, {"include_gnome": gnome}]


def test_scores_of_targets_whose_names_begin_alike_stay_apart() -> None:
    from cgnn.cli.report import _validation
    from cgnn.targets import Target

    targets = [Target(name="gap", unit="eV"), Target(name="gap_direct", unit="eV")]
    rows = _validation({"val_score": 1.0, "val_gap_mae": 0.25, "val_gap_direct_mae": 0.5, "train": 3}, targets)
    assert rows[1:] == [("gap", "MAE", "0.25", "eV"), ("gap_direct", "MAE", "0.5", "eV")]
    assert _validation({"train": 3}, targets) == []


def test_an_ensemble_is_trained_and_resumed(cgnn: Run, config: Path, export: Path, tmp_path: Path) -> None:
    """One command trains it; --resume alone knows what it is; its folder works as a run's."""
    folder = tmp_path / "run"
    ways = ("--members", 2, "--by", "bootstrap", "--side-by-side", "serial")
    outcome = cgnn("train", config, "--output", folder, "-o", "train.epochs=1", *ways)
    assert outcome.code == 0
    assert "member 2/2  epoch 1/1" in outcome.err
    assert "MAE (log10)" in outcome.out
    before = (folder / "best" / "model.safetensors").read_bytes()
    (folder / "best" / "model.safetensors").unlink()
    assert cgnn("train", "--resume", "--output", folder).code == 0
    assert (folder / "best" / "model.safetensors").read_bytes() == before
    told = cgnn("info", folder).out
    assert "members      2, by bootstrap; a prediction is their mean" in told
    assert "best epoch   1, 1 of 1" in told
    assert cgnn("predict", folder, export, "--output", tmp_path / "p.csv").code == 0
    assert cgnn("evaluate", folder, export, "--output", tmp_path / "e").code == 0
    assert cgnn("evaluate", folder, export, "--output", folder).code == 2


def test_options_of_ensembles(cgnn: Run, config: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--by", "bootstrap"), "--by, --side-by-side and --workers are for ensembles: give also --members"),
        (("--members", 2, "--by", "seeds"), "unknown ensemble 'seeds'; did you mean 'seed'"),
        (("--members", 2, "--side-by-side", "x"), "unknown way to fit members side by side 'x'"),
        (("--members", 0), "greater than or equal to 1"),
    ):
        outcome = cgnn("train", config, "--output", tmp_path / "run", *options)
        assert outcome.code == 2
        assert message in outcome.err
    assert not (tmp_path / "run").exists()
