"""Ids that come again."""

from __future__ import annotations

from cgnn.data.items import SetAside, set_aside
from cgnn.errors import CrystalError


class Repeats:
    """Remembers which ids were met, so that each is used once: the first stays."""

    def __init__(self) -> None:
        self._met: dict[str, tuple[bytes, str]] = {}

    def note(self, material_id: str, source: str, digest: bytes) -> SetAside | None:
        """Return why a record is set aside, or nothing when its id is met for the first time.

        The code is ``duplicate`` where the record has the content of the first, ``id_conflict`` where it has not.

        Args:
            material_id: Its id.
            source: Where it came from.
            digest: The digest of its content.
        """
        mine = (digest, source)
        met = self._met.setdefault(material_id, mine)
        if met is mine:
            return None
        first, place = met
        if first == digest:
            error = CrystalError("duplicate", f"repeats record {material_id!r} of {place}")
        else:
            error = CrystalError(
                "id_conflict", f"has the id of the record of {place} but other content; the first one is kept"
            )
        return set_aside(material_id, source, error)
