import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cgnn.config import Config, build, load
from cgnn.errors import ConfigError
from cgnn.strict import differences, dump
from cgnn.targets import Target
from cgnn.yaml_text import parse_yaml

ROOT_SETTINGS = {"targets": [{"name": "bulk_modulus", "unit": "GPa", "transform": "log10"}]}


def settings(**sections):
    return {**ROOT_SETTINGS, **sections}


def written(tmp_path, text):
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


YAML = """\
targets:
  - {name: bulk_modulus, column: bulk_modulus.vrh, unit: GPa, transform: log10}
  - {name: crystal_system, task: multiclass, classes: [cubic, "1", "1e3", "No"]}
model:
  depth: 2
train:
  learning_rate: 1e-3
"""


def test_load_and_dump_round_trip(tmp_path):
    config = load(written(tmp_path, YAML))
    assert config.model.depth == 2
    assert config.train.learning_rate == 1e-3
    assert config.targets[1].classes == ("cubic", "1", "1e3", "No")
    again = load(written(tmp_path, dump(config)))
    assert again == config
    assert dump(again) == dump(config)


def test_default_settings_are_written_whole():
    values = parse_yaml(dump(build(ROOT_SETTINGS)))
    assert values["graph"] == {
        "neighbors": "nearest",
        "k": 12,
        "reach": 1.25,
        "cutoff": 10.0,
        "tolerance": 0.01,
        "max_atoms": 10_000,
        "max_edges": 2_000_000,
    }
    assert build(values) == build(ROOT_SETTINGS)


ODD = ["1e3", "1E5", "1.", ".5", "08", "010", "0x10", "1_000", "No", "on", "y", "null", "~", "true", "1:30", "=", "<<"]


@pytest.mark.parametrize("word", [*ODD, "*a", "&a", "!!int 3", "a: b", "# no", " x", "", "é", "2020-01-01", "'", '"'])
def test_words_stay_words(word):
    config = build({"targets": [{"name": "y", "unit": word, "column": word}]})
    assert build(parse_yaml(dump(config))) == config


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=12), st.floats(1e-300, 1e300))
def test_any_text_and_number_come_back(text, number):
    config = build({"targets": [{"name": "y", "unit": text}], "train": {"learning_rate": number}})
    assert build(parse_yaml(dump(config))) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5", -2.5),
        (".5", 0.5),
        ("7", 7),
        ("-0", 0),
        ("No", "No"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("010", "010"),
        ("08", "08"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        (".inf", ".inf"),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("mp-149", "mp-149"),
        ("[1, 2e0]", [1, 2.0]),
    ],
)
def test_yaml_scalars(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_overrides(tmp_path):
    path = written(tmp_path, YAML)
    config = load(
        path,
        [
            "model.depth=8",
            "train.learning_rate=1e-4",
            "train.clip=null",
            "train.patience=",
            "targets.0.unit=kbar",
            "model.elements=[one_hot]",
            "data.split.method=kfold",
            "data.split.element=No",
            "graph.k=16",
        ],
    )
    assert config.model.depth == 8
    assert config.train.learning_rate == 1e-4
    assert config.train.clip is None
    assert config.train.patience is None
    assert config.targets[0].unit == "kbar"
    assert config.targets[0].transform == "log10"
    assert config.model.elements == ("one_hot",)
    assert config.data.split.element == "No"
    assert config.graph.k == 16


def test_overrides_leave_the_values_alone():
    values = settings(model={"depth": 2})
    build(values, ["model.depth=3", "targets.0.unit=kbar"])
    assert values == settings(model={"depth": 2})


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depht=8", r"model\.depht: unknown key; did you mean 'depth'\?"),
        ("modle.depth=8", r"modle: unknown key; did you mean 'model'\?"),
        ("train.lr=1e-3", r"train\.lr: unknown key.*learning_rate"),
        ("targets.0.unitt=GPa", r"targets\.0\.unitt: unknown key; did you mean 'unit'\?"),
        ("targets.5.unit=GPa", r"targets\.5: expected a number from 0 to 1, got '5'"),
        ("targets.x.unit=GPa", r"targets\.x: expected a number from 0 to 1, got 'x'"),
        ("targets.0.unit.a=1", r"targets\.0\.unit is a single value"),
        ("model.depth.x=8", "model: unknown key|model.depth: Input should be a valid integer|has no keys below"),
        ("model.depth=deep", r"model\.depth: Input should be a valid integer, got 'deep'"),
        ("model.depth=3.0", r"model\.depth: Input should be a valid integer, got 3\.0"),
        ("model.depth=true", r"model\.depth: Input should be a valid integer, got True"),
        ("train.batch_size=0", r"train\.batch_size: Input should be greater than or equal to 1, got 0"),
        ("train.learning_rate=1e400", r"train\.learning_rate: Input should be a finite number"),
        ("train.device=gpu", r"train\.device: Input should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("model.elements=one_hot", r"model\.elements: Input should be a list, got 'one_hot'"),
        ("data=3", r"data: .*, got 3"),
        ("model.depth", "expected key=value"),
        ("=8", "expected key=value"),
        ("model.depth=[1", "override model.depth: not valid YAML"),
    ],
)
def test_bad_overrides(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load(written(tmp_path, YAML), [override])


TYPOS = [
    ("targts", "targets"), ("tragets", "targets"), ("datas", "data"), ("grpah", "graph"), ("modell", "model"),
    ("tranin", "train"), ("model.widht", "width"), ("model.dropuot", "dropout"), ("model.poolling", "pooling"),
    ("model.gausians", "gaussians"), ("model.head_widht", "head_width"), ("train.epoch", "epochs"),
    ("train.batchsize", "batch_size"), ("train.learning_rat", "learning_rate"), ("train.sed", "seed"),
    ("graph.neigbors", "neighbors"), ("graph.cutof", "cutoff"), ("data.pth", "path"), ("data.split.metod", "method"),
    ("data.split.vall", "val"),
]  # fmt: skip


@pytest.mark.parametrize(("typo", "right"), TYPOS)
def test_typos_are_answered(typo, right):
    values = settings()
    node = values
    *parents, last = typo.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
    node[last] = 1
    with pytest.raises(ConfigError, match=rf"{typo}: unknown key; did you mean '{right}'\?"):
        build(values)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"targets": []}, "targets: List should have at least 1 item|targets: Tuple should have at least 1"),
        ({"targets": [{"unit": "GPa"}]}, r"targets\.0\.name: missing"),
        ({"targets": [{"name": "a"}, {"name": "a"}]}, "two targets share the name 'a'"),
        ({"targets": [{"name": "a b"}]}, r"targets\.0\.name: String should match pattern"),
        ({"targets": [{"name": "flags"}]}, r"targets\.0: the name 'flags' is taken"),
        ({"targets": [{"name": "a", "transform": "log1"}]}, r"unknown transform 'log1'; did you mean 'log10'\?"),
        ({"targets": [{"name": "a", "task": "binary", "transform": "log10"}]}, "needs task 'regression'"),
        ({"targets": [{"name": "a", "task": "multiclass"}]}, "needs at least two different names"),
        ({"targets": [{"name": "a", "task": "multiclass", "classes": ["x", "x"]}]}, "at least two different names"),
        ({"targets": [{"name": "a", "task": "multiclass", "classes": [1, 2]}]}, "should be a valid string"),
        ({"targets": [{"name": "a", "classes": ["x", "y"]}]}, "belongs to task 'multiclass'"),
        ({"targets": [{"name": "a", "weight": 0}]}, r"targets\.0\.weight: .*greater than 0"),
        ({"data": {"split": {"val": 0.5, "test": 0.5}}}, r"data\.split: val \+ test must leave something"),
        ({"data": {"split": {"method": "file"}}}, "method 'file' needs 'file'"),
        ({"data": {"split": {"method": "element"}}}, "method 'element' needs 'element'"),
        ({"data": {"split": {"method": "kfold", "fold": 5}}}, "must be below folds"),
        ({"data": {"split": {"val": 1.0}}}, r"data\.split\.val: .*less than 1"),
        ({"graph": {"k": 0}}, r"graph\.k: .*greater than or equal to 1"),
        ({"model": {"gaussian_range": [0.0]}}, r"model\.gaussian_range"),
        ({"train": {"ema": 1.0}}, r"train\.ema: .*less than 1"),
    ],
)
def test_impossible_settings(sections, message):
    with pytest.raises(ConfigError, match=message):
        build(settings(**sections))


def test_every_problem_is_told_at_once():
    with pytest.raises(ConfigError, match="unknown key") as caught:
        build(settings(model={"depht": 3, "width": "x"}, train={"epochs": -1}))
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {depth: 1}\nmodel: {depth: 2}\ntargets: [{name: a}]", "key 'model' twice"),
        ("targets: [{name: a, name: b}]", "key 'name' twice"),
        ("targets: &a [{name: a}]\nmodel: *a", "aliases"),
        ("a: &x {b: 1}\n<<: *x", "aliases"),
        ("<<: {b: 1}\ntargets: [{name: a}]", "not valid YAML"),
        ("targets: !!python/object/apply:os.system [ls]", "not valid YAML"),
        ("targets: !!python/name:os.system", "not valid YAML"),
        ("targets: !something 1", "not valid YAML"),
        ("1: {depth: 1}", "key 1 is no text"),
        ("? [a]\n: 1", "is no text"),
        ("targets: [{name: a}", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("a: " + "[" * 1200, "not valid YAML"),
        ("a: " + "9" * 5000, "not valid YAML"),
        ("a: \x07", "not valid YAML"),
        ("", "expected keys such as 'targets' and 'data', got NoneType"),
        ("# nothing\n", "got NoneType"),
        ("- a\n- b", "got list"),
        ("just words", "got str"),
    ],
)
def test_bad_yaml(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


def test_alias_bomb_is_refused_before_it_grows(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 30)]
    with pytest.raises(ConfigError, match="aliases"):
        load(written(tmp_path, "\n".join(lines)))


def test_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.yaml: could not be read: No such file"):
        load(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="could not be read"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("unit: Å".encode("latin-1"))
    with pytest.raises(ConfigError, match="could not be read"):
        load(tmp_path / "latin.yaml")


def test_differences_have_dotted_keys():
    old = build(settings(model={"depth": 2}))
    new = build(settings(model={"depth": 3}), ["targets.0.unit=kbar", "train.clip=null"])
    assert differences(old, new) == {
        "model.depth": (2, 3),
        "targets.0.unit": ("GPa", "kbar"),
        "train.clip": (1.0, None),
    }
    assert differences(old, old) == {}


def test_settings_are_frozen():
    config = build(ROOT_SETTINGS)
    with pytest.raises(ValueError, match="frozen"):
        config.model.depth = 5


def test_numbers_of_other_libraries_are_not_settings():
    with pytest.raises(ConfigError, match=r"model\.depth"):
        build(settings(model={"depth": np.int64(3)}))


def test_targets_may_be_given_as_objects():
    assert Config(targets=(Target(name="bulk_modulus", unit="GPa", transform="log10"),)) == build(ROOT_SETTINGS)


def test_shipped_settings_load(pytestconfig):
    for path in sorted((pytestconfig.rootpath / "configs").glob("*.yaml")):
        if path.name == "screen.yaml":  # of a screen, not of a run: tests/screen/test_settings.py
            continue
        config = load(path)
        assert build(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (None, r"data\.path: .* string or a list of strings, got None$"),
        (5, r"data\.path: .* string or a list of strings, got 5$"),
        (["a", 3], r"data\.path\.1: .* string, got 3$"),
        ([], r"data\.path: .* at least 1 item"),
    ],
)
def test_a_path_is_a_text_or_a_list_and_wrong_ones_are_said_once(path, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build({"targets": [{"name": "y"}], "data": {"path": path}})
    assert len(str(caught.value).splitlines()) == 1
