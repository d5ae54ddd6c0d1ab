"""Bad requests and files nobody can use: one message that says what is wrong, exit code 2, nothing left behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from samples import Run

TRAIN = "train {config} --output {out}/run "
PREDICT = "predict {model} --output {out}/p.csv "
EVALUATE = "evaluate {model} --output {out}/e "

REQUESTS = {
    # settings
    "no config": ("train {mess}/no.yaml", r"no\.yaml: could not be read: No such file"),
    "config is a folder": ("train {mess}", r"could not be read: Is a directory"),
    "no yaml": ("train {mess}/broken.yaml", r"broken\.yaml: not valid YAML: .*line 2"),
    "yaml without keys": (
        "train {mess}/list.yaml",
        r"list\.yaml: expected keys such as 'targets' and 'data', got list",
    ),
    "empty yaml": ("train {mess}/nothing.yaml", r"nothing\.yaml: expected keys"),
    "no settings": ("train", r"no settings: give a YAML file, or --resume"),
    "no data": (TRAIN + "-o data.path=", r"data\.path"),
    "unknown key": (TRAIN + "-o model.dept=3", r"model\.dept: unknown key; did you mean 'depth'\?"),
    "wrong type": (TRAIN + "-o model.depth=three", r"model\.depth: .*integer, got 'three'"),
    "override without =": (TRAIN + "-o model.depth", r"'model\.depth': expected key=value"),
    "override without a key": (TRAIN + "-o =3", r"'=3': expected key=value"),
    "override beyond a list": (TRAIN + "-o targets.7.column=x", r"targets\.7: expected a number from 0 to 1, got '7'"),
    "unknown transform": (TRAIN + "-o targets.0.transform=log11", r"unknown transform 'log11'; did you mean 'log10'\?"),
    "unknown neighbours": (TRAIN + "-o graph.neighbors=neerest", r"'neerest'; did you mean 'nearest'\?"),
    "unknown pooling": (TRAIN + "-o model.pooling=men", r"unknown pooling 'men'; did you mean 'mean'\?"),
    "unknown loss": (TRAIN + "-o train.loss=hubr", r"unknown loss 'hubr'; did you mean 'huber'\?"),
    "unknown schedule": (TRAIN + "-o train.schedule=cosin", r"unknown schedule 'cosin'; did you mean 'cosine'\?"),
    "unknown split": (TRAIN + "-o data.split.method=rndom", r"unknown split method 'rndom'; did you mean 'random'\?"),
    "impossible pair": (TRAIN + "-o data.split.val=0.8", r"data\.split: val \+ test must leave something"),
    "element that is not there": (
        TRAIN + "-o data.split.method=element -o data.split.element=Zz",
        r"unknown element 'Zz' \(known: Ag",
    ),
    "no split file": (
        TRAIN + "-o data.split.method=file -o data.split.file={mess}/no.json",
        r"no\.json: could not be read: No such file",
    ),
    "negative seed": (TRAIN + "--seed -1", r"train\.seed: .*greater than or equal to 0, got -1"),
    "seed in words": (TRAIN + "--seed one", r"'--seed': .*integer.*cgnn train --help"),
    "device of another maker": (TRAIN + "--device tpu", r"train\.device: .*'cpu' or 'cuda', got 'tpu'"),
    "too many folds": ("cv {config} --output {out}/cv --folds 99", r"too few crystals for 99 folds: 40 crystals"),
    "one fold": ("cv {config} --output {out}/cv --folds 1", r"'--folds': .*greater than or equal to 2"),
    "nothing to resume": ("train --resume --output {out}/run", r"run: nothing to resume: there is no config\.yaml"),
    # where training puts things
    "run is a file": ("train {config} --output {mess}/a_file", r"a_file: is a file; a run is a folder"),
    "run below a file": ("train {config} --output {mess}/a_file/run", r"a_file/run.*could not be written"),
    "folder in use": ("train {config} --output {mess}", r"is not empty and a run is never overwritten"),
    "cache below a file": (TRAIN + "-o data.cache={mess}/a_file/c", r"a_file/c/\S+: could not be written"),
    # training data
    "no file": (TRAIN + "-o data.path={mess}/god.json", r"god\.json: .*[Nn]o such file"),
    "empty file": (TRAIN + "-o data.path={mess}/empty.json", r"empty\.json: the file is empty"),
    "empty list": (TRAIN + "-o data.path={mess}/emptylist.json", r"emptylist\.json: no crystals in it"),
    "no column": (
        TRAIN + "-o data.path={mess}/good.json -o targets.0.column=bulk_modulus.vhr",
        r"unknown column 'bulk_modulus\.vhr'; did you mean 'bulk_modulus\.vrh'\?",
    ),
    "no labels": (TRAIN + "-o data.path={mess}/nolabel.json", r"unknown column 'bulk_modulus\.vrh' \(known: chemsys,"),
    "labels are words": (
        TRAIN + "-o data.path={mess}/good.json -o targets.0.column=formula_pretty",
        r"no crystal has a usable label; the first: column 'formula_pretty': 'Ag' is not a number",
    ),
    "no id column": (
        TRAIN + "-o data.path={mess}/good.json -o data.id_column=matid",
        r"unknown column 'matid'; did you mean 'material_id'\?",
    ),
    # models
    "no model": ("predict {mess}/nothing {mess}/cifs", r"nothing: no model found \(expected a run folder with best/"),
    "model is data": ("predict {mess}/good.json {mess}/cifs", r"good\.json: .*not a file of cgnn"),
    "damaged model": ("predict {mess}/damaged.safetensors {mess}/cifs", r"damaged\.safetensors: .*damaged"),
    "damaged model to score": (
        "evaluate {mess}/damaged.safetensors {mess}/good.json",
        r"damaged\.safetensors: .*damaged",
    ),
    "damaged model to show": ("info {mess}/damaged.safetensors", r"damaged\.safetensors: .*damaged"),
    "state is no model": ("info {model}/last/state.safetensors", r"holds a 'state', expected a model"),
    # crystals to predict
    "misspelt file": (PREDICT + "{mess}/god.json", r"god\.json: no such file; did you mean good\.json\?"),
    "empty file to predict": (PREDICT + "{mess}/empty.json", r"empty\.json: the file is empty; expected crystals"),
    "empty folder": (PREDICT + "{mess}/nothing", r"nothing: no crystals in the folder .*it holds nothing"),
    "folder without crystals": (PREDICT + "{mess}/texts", r"texts: no crystals in the folder .*it holds readme\.txt"),
    "unknown ending": (
        PREDICT + "{mess}/x.weird",
        r"x\.weird: can't tell the format .* or use an ending such as \.json",
    ),
    "no JSON": (PREDICT + "{mess}/junk.json", r"junk\.json: .*starts with"),
    "web page": (PREDICT + "{mess}/page.json", r"page\.json: is a web page"),
    "table without crystals": (PREDICT + "{mess}/nocif.csv", r"nocif\.csv: no column with crystals .*got a, b"),
    "list as lines": (PREDICT + "{mess}/good.json --format jsonl", r"good\.json: is a JSON list.*use format 'mp_json'"),
    "unknown format": (PREDICT + "{mess}/good.json --format parket", r"'parket'; did you mean 'parquet'\?"),
    "folder as file": (PREDICT + "{mess}/cifs --format csv", r"cifs: format 'csv' reads a file, this is a folder"),
    "folder without table": (PREDICT + "{mess}/cifs --format cgcnn", r"cifs: no id_prop\.csv in it"),
    "misspelt column": (
        PREDICT + "{mess}/table.csv --structure-column cip",
        r"table\.csv: unknown column 'cip'; did you mean 'cif'\?",
    ),
    "all bad": (PREDICT + "{mess}/mixed/bad.cif", r"bad can't be used: the CIF has no atoms"),
    "no crystals to score": (EVALUATE + "{mess}/nothing", r"nothing: no crystals in the folder"),
    "no labels to score": (
        EVALUATE + "{mess}/nolabel.json",
        r"none of the 12 crystals .* no value of bulk_modulus\.vrh",
    ),
    "cif has no labels": (EVALUATE + "{mess}/one.cif", r"one can't be used: no value of bulk_modulus\.vrh"),
    # where predictions go
    "output of another kind": (
        "predict {model} {mess}/cifs --output {out}/p.xlsx",
        r"p\.xlsx: tables are written as \.csv or \.parquet, got '\.xlsx'",
    ),
    "output is a folder": ("predict {model} {mess}/cifs --output {mess}/texts", r"texts: tables are written as"),
    "output below a file": ("predict {model} {mess}/cifs --output {mess}/a_file/p.csv", r"a_file/p\.csv: could not be"),
    "output is the input": ("predict {model} {mess}/table.csv --output {mess}/table.csv", r"table\.csv: is the input"),
    "results below a file": (
        "evaluate {model} {mess}/good.json --output {mess}/a_file",
        r"a_file/\S+: could not be wri",
    ),
    "device in words": (PREDICT + "{mess}/cifs --device gpu", r"device 'gpu': expected auto, cpu or cuda"),
    # words
    "unknown command": ("trian", r"'trian'\. Did you mean 'train'\?.*\(see cgnn --help\)"),
    "unknown option": ("train {config} --epochs 4", r"No such option: --epochs.*\(see cgnn train --help\)"),
    "nothing to score": ("evaluate {model}", r"Missing argument 'data'.*\(see cgnn evaluate --help\)"),
    "no key": ("fetch {out}/export.json.gz", r"API key.*MP_API_KEY"),
    "export of another kind": ("fetch {out}/export.xyz", r"export\.xyz: the file must end in \.json"),
}


@pytest.mark.parametrize(("command", "message"), REQUESTS.values(), ids=REQUESTS)
def test_bad_request(
    command: str,
    message: str,
    cgnn: Run,
    config: Path,
    trained: Path,
    mess: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MP_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    before = content(mess)
    done = cgnn(*command.format(config=config, model=trained, mess=mess, out=tmp_path).split())
    assert (done.code, done.out) == (2, "")
    errors = [line for line in done.err.splitlines() if not line.startswith("data: ")]
    assert len(errors) == 1, done.err
    assert errors[0].startswith("error: ")
    assert re.search(message, errors[0]), errors[0]
    assert content(mess) == before
    results = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert not results & {"p.csv", "model.safetensors", "metrics.json", "cv.json", "export.json.gz"}
    assert not [name for name in results if name.startswith(".") or name.endswith(".tmp")]


def content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["train {config} --output {out}/run", "predict {model} {mess}/cifs"])
def test_cuda_where_there_is_none(
    command: str, cgnn: Run, config: Path, trained: Path, mess: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    words = command.format(config=config, model=trained, mess=mess, out=tmp_path).split()
    done = cgnn(*words, "--device", "cuda")
    assert done.code == 2
    assert "'cuda' was asked for, but torch sees no CUDA device" in done.err


def test_a_mistake_of_ours_leaves_its_traceback_in_a_file(
    cgnn: Run, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("what nobody expected")

    monkeypatch.setattr("cgnn.predict.Predictor.load", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = cgnn("info", trained)
    (log,) = tmp_path.glob("cgnn-error-*.log")
    assert done.code == 1
    assert done.err == f"internal error: KeyError: 'what nobody expected'; details in {log}\n"
    assert "Traceback" in log.read_text()


def test_half_a_download_is_used_and_said(cgnn: Run, trained: Path, mess: Path, tmp_path: Path) -> None:
    done = cgnn("predict", trained, mess / "cut.json.gz", "--output", tmp_path / "p.csv")
    assert done.code == 3
    assert "cut.json.gz:" in done.err
    assert "can't be read beyond this record" in done.err
