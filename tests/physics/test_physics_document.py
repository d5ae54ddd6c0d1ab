"""``docs/physics.md`` holds every relation as the table has it."""

from __future__ import annotations

from pathlib import Path

from cgnn.physics import RELATIONS

DOCUMENT = (Path(__file__).parents[2] / "docs" / "physics.md").read_text()


def test_the_document_has_the_table() -> None:
    for name, relation in RELATIONS.items():
        source = f"{relation.source}, doi:{relation.doi}" if relation.doi else relation.source
        row = f"| `{name}` | `{relation.formula}` | {relation.unit or '-'} | {relation.validity} | {source} |"
        assert row in DOCUMENT, f"docs/physics.md: expected {row}"
