"""Which crystals are positive: from the columns that exports have, or one clear error."""

import json

import numpy as np
import pytest

from cgnn.config import build
from cgnn.errors import ConfigError, DataError
from cgnn.train.pu.labels import LABELS, Opening, kind_of


@pytest.fixture
def opened(embedded_documents, tmp_path):
    """Return positive ids, unlabelled ids and what was set aside, of crystals with a column of values."""

    def read(values, column="theoretical", key=None, **pu):
        documents = [{k: v for k, v in d.items() if k != "theoretical"} for d in embedded_documents[: len(values)]]
        for number, (document, value) in enumerate(zip(documents, values, strict=True)):
            document["material_id"] = f"c{number}"
            if value is not ...:
                document[key or column] = value
        path = tmp_path / "export.json"
        path.write_text(json.dumps(documents))
        config = build(
            {
                "targets": [{"name": "made", "task": "binary"}],
                "data": {"path": str(path), "cache": str(tmp_path)},
                "pu": {"column": column, **pu},
            }
        )
        dataset = Opening(config.pu)(config)
        labels = dataset.label(config.targets[0])
        apart = [[n for n, label in zip(dataset.ids, labels, strict=True) if label == wanted] for wanted in (1, 0)]
        return *apart, [aside.material_id for aside in dataset.set_aside]

    return read


def test_theoretical(opened):
    assert opened([True, False, "false", None, ..., 1]) == (["c1", "c2"], ["c0", "c5"], ["c3", "c4"])


@pytest.mark.parametrize("column", ["icsd_ids", "icsd", "icsd_id"])
def test_icsd_ids(opened, column):
    """A list, a text or a number is a positive; whatever stands for nothing is unlabelled."""
    found = opened([["icsd-1", "icsd-2"], [], "icsd-7", "", None, 1234, ..., "[]", [17]], column)
    assert found == (["c0", "c2", "c5", "c8"], ["c1", "c3", "c4", "c6", "c7"], [])


def test_icsd_ids_as_the_materials_project_has_them(opened, embedded_documents):
    """Also where there are as many ids as atoms."""
    atoms = len(embedded_documents[1]["structure"]["sites"])
    many = {"icsd": [f"icsd-{n}" for n in range(atoms)], "pf": ["sd_1"]}
    given = [{"icsd": ["icsd-1"]}, many, {"icsd": []}, {}, None, ...]
    assert opened(given, "database_IDs.icsd", "database_IDs") == (["c0", "c1"], ["c2", "c3", "c4", "c5"], [])


def test_icsd_ids_in_parquet(embedded_documents, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    structures = [d["structure"] for d in embedded_documents[:3]]
    table = pa.table(
        {
            "material_id": ["a", "b", "c"],
            "structure": [json.dumps(structure) for structure in structures],
            "icsd_ids": [["icsd-1", "icsd-2"], [], None],
        }
    )
    pq.write_table(table, tmp_path / "export.parquet")
    config = build(
        {
            "targets": [{"name": "made", "task": "binary"}],
            "data": {"path": str(tmp_path / "export.parquet"), "cache": str(tmp_path)},
            "pu": {"column": "icsd_ids"},
        }
    )
    dataset = Opening(config.pu)(config)
    assert dict(zip(dataset.ids, dataset.label(config.targets[0]), strict=True)) == {"a": 1, "b": 0, "c": 0}


@pytest.mark.parametrize(
    "values",
    [[1, 0, 1, 0], [True, False, True, False], ["positive", "unlabelled", "Positive", "unlabeled"], [1, -1, 1.0, "0"]],
)
def test_explicit(opened, values):
    assert opened(values, "made") == (["c0", "c2"], ["c1", "c3"], [])


def test_kinds_are_found_by_name():
    wanted = {"theoretical": "theoretical", "database_IDs.icsd": "icsd", "icsd_ids": "icsd", "made": "explicit"}
    from cgnn.config import PUConfig

    assert {name: kind_of(PUConfig(column=name)) for name in wanted} == wanted
    assert kind_of(PUConfig(column="theoretical", labels="explicit")) == "explicit"
    assert set(wanted.values()) == set(LABELS)


@pytest.mark.parametrize(
    ("values", "pu", "message"),
    [
        ([True] * 4, {}, r"pu.column 'theoretical': all 4 crystals are unlabelled; expected both: true \(unlabelled\)"),
        ([False] * 4, {}, r"all 4 crystals are positive"),
        ([None, None], {}, r"pu.column 'theoretical': no crystal has a label"),
        (
            [True, "maybe", 7, False, 0.5, "x"],
            {},
            r"expected true \(unlabelled\) or false .*but c1 is 'maybe', c2 is '7.0', c4 is '0.5' and 1 more",
        ),
        ([1, 0, 2], {"column": "made"}, r"pu.column 'made': expected 1, true, positive or 0.*c2 is '2.0'"),
        ([True, False], {"column": "icsd_ids"}, r"expected ICSD ids \(positive\).*c0 is 'True', c1 is 'False'"),
        ([True, False, 3], {"later": "theoretical"}, r"pu.column 'theoretical': expected .*c2 is '3.0'"),
    ],
)
def test_bad_labels_are_one_error(opened, values, pu, message):
    with pytest.raises(DataError, match=message):
        opened(values, **pu)


def test_a_column_that_is_not_there(opened):
    with pytest.raises(DataError, match=r"pu.later: unknown column 'theoretica'; did you mean 'theoretical'"):
        opened([True, False], later="theoretica")


def test_no_such_kind(opened):
    with pytest.raises(ConfigError, match=r"unknown kind of labels 'icds'; did you mean 'icsd'"):
        opened([True, False], labels="icds")


@pytest.mark.parametrize(
    "targets",
    [
        [{"name": "k"}],
        [{"name": "a", "task": "binary"}, {"name": "b", "task": "binary"}],
        [{"name": "a", "task": "binary", "level": "atom"}],
    ],
)
def test_one_target_of_yes_or_no(targets):
    from cgnn.train.pu.labels import pu_target

    with pytest.raises(ConfigError, match="one target of crystals with task 'binary'"):
        pu_target(build({"targets": targets}))


def test_positives_of_later_years_count_as_unlabelled(embedded_documents, tmp_path):
    from cgnn.train.pu.labels import later_ids

    given = [(False, True), (False, False), (True, True), (True, None), (False, None)]
    documents = [
        {**d, "material_id": f"c{n}", "theoretical": theoretical, "recent": recent}
        for n, (d, (theoretical, recent)) in enumerate(zip(embedded_documents, given, strict=False))
    ]
    (tmp_path / "export.json").write_text(json.dumps(documents))
    config = build(
        {
            "targets": [{"name": "made", "task": "binary"}],
            "data": {"path": str(tmp_path / "export.json"), "cache": str(tmp_path)},
            "pu": {"later": "recent"},
        }
    )
    dataset = Opening(config.pu)(config)
    np.testing.assert_array_equal(dataset.label(config.targets[0]), [0, 1, 0, 0, 1])
    assert later_ids(dataset.store, config.pu, config.targets[0]) == ["c0"]
