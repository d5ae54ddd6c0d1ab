"""Download of a Materials Project export through mp-api: in pages, resumable, counted and checked."""

from __future__ import annotations

import gzip
import hashlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from cgnn.data.mp_server import ATTEMPTS, LONGEST_WAIT, Server, connect, json_object
from cgnn.errors import DataError
from cgnn.files import replacing, write_bytes, write_json

FIELDS = (
    "material_id",
    "formula_pretty",
    "chemsys",
    "nsites",
    "volume",
    "density",
    "symmetry",
    "structure",
    "theoretical",
    "database_IDs",
    "energy_above_hull",
    "formation_energy_per_atom",
    "band_gap",
    "is_metal",
    "bulk_modulus",
    "shear_modulus",
    "universal_anisotropy",
    "homogeneous_poisson",
)
ELASTIC: dict[str, Any] = {"k_vrh": (0, 1000)}
"""The default query: every material with a bulk modulus."""
LICENCE = "Materials Project data, CC BY 4.0 (https://materialsproject.org/about/terms)"
GNOME_LICENCE = "; with GNoME entries, which are CC BY-NC 4.0: not for commercial use"

_SUMMARY = "materials/summary/"
_LOG = logging.getLogger(__name__)


@dataclass
class _Pages:
    """The pages fetched so far, in a folder beside the output."""

    folder: Path
    header: dict[str, Any] = field(default_factory=dict)

    def open(self, header: dict[str, Any]) -> None:
        """Go on with the pages that are there if they answer the same request, else begin anew.

        Raises:
            DataError: The pages belong to another request.
        """
        file = self.folder / "request.json"
        old = json_object(file.read_bytes()) if file.is_file() else None
        if old is not None and old.get("request") != header["request"]:
            raise DataError(f"{self.folder}: holds the pages of another request; finish that one, or delete the folder")
        if old is None or old != header:
            if old is not None:
                _LOG.warning("%s: the database changed since; beginning anew", self.folder)
            self.remove()
            write_json(file, header)
        self.header = header

    def path(self, number: int) -> Path:
        return self.folder / f"page-{number:06d}.jsonl.gz"

    def documents(self) -> Iterator[bytes]:
        for file in sorted(self.folder.glob("page-*.jsonl.gz")):
            with gzip.open(file) as handle:
                yield from handle

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def fetch(
    output: str | Path,
    query: Mapping[str, Any] | None = None,
    fields: Iterable[str] = FIELDS,
    *,
    include_gnome: bool = False,
    api_key: str | None = None,
    endpoint: str | None = None,
    page_size: int = 500,
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Download documents of the Materials Project's summary collection to a file that `cgnn.data.records.read` reads.

    Pages are kept in ``<output>.partial`` until all are there, so a download that was stopped goes on where it
    was when it is started again. ``<output>.manifest.json`` says what was asked, when, of which database version,
    how many documents came, their SHA-256 and their licence.

    Args:
        output: A file ending in ``.json``, ``.jsonl``, ``.json.gz`` or ``.jsonl.gz``; must not exist.
        query: Search terms of the REST interface; a pair is a range (``{"k_vrh": (0, 1000)}``). By default all
            materials that have a bulk modulus. Deprecated ones are left out unless the query asks for them.
        fields: Fields to ask for.
        include_gnome: Also take the entries of GNoME, whose licence (BY-NC) forbids commercial use.
        api_key: The key; by default the environment variable ``MP_API_KEY``.
        endpoint: Another server; by default ``MP_API_ENDPOINT`` or the Materials Project's.
        page_size: Documents per page.
        wait: Called with the seconds to pause before another attempt.

    Returns:
        The manifest.

    Raises:
        DataError: No key or a refused one, an output that exists, a server that fails for good, or an answer that is
            not whole.
        MissingPackageError: mp-api is not installed.
    """
    output = Path(output)
    _check_output(output)
    server, database = connect(api_key, endpoint, wait)
    params = _params(query, fields, include_gnome)
    request = {"endpoint": server.endpoint, "params": params, "page_size": page_size}
    pages = _Pages(output.with_name(output.name + ".partial"))
    with server.session:
        total = _total(server.get(_SUMMARY, {**params, "_limit": 1, "_fields": "material_id"}))
        pages.open({"request": request, "database_version": database, "total": total})
        _fill(pages, server, request, total)
    count, digest = _assemble(pages, output, total)
    manifest = {
        "file": output.name,
        "query": params,
        "endpoint": server.endpoint,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "database_version": database,
        "count": count,
        "sha256": digest,
        "licence": LICENCE + (GNOME_LICENCE if include_gnome else ""),
    }
    write_json(output.with_name(output.name + ".manifest.json"), manifest)
    pages.remove()
    return manifest


def provenance(*paths: str | Path) -> dict[str, Any]:
    """Return where exports come from: their names and, from manifests beside them, database version and licence."""
    found = [_provenance(Path(path)) for path in paths]
    keys = dict.fromkeys(key for known in found for key in known)
    return {key: "; ".join(str(known[key]) for known in found if key in known) for key in keys}


def _provenance(path: Path) -> dict[str, Any]:
    known: dict[str, Any] = {"file": path.name}
    try:
        manifest = orjson.loads(path.with_name(path.name + ".manifest.json").read_bytes())
        known |= {key: manifest[key] for key in ("date", "database_version", "licence") if key in manifest}
    except (OSError, ValueError, TypeError):
        pass  # made by other means than fetch
    return known


def _check_output(output: Path) -> None:
    if not output.name.endswith((".json", ".jsonl", ".json.gz", ".jsonl.gz")):
        raise DataError(f"{output}: the file must end in .json, .jsonl, .json.gz or .jsonl.gz")
    if output.exists():
        raise DataError(f"{output}: is there already; move it away or choose another name")


def _params(query: Mapping[str, Any] | None, fields: Iterable[str], include_gnome: bool) -> dict[str, Any]:
    params: dict[str, Any] = {"deprecated": False}
    for name, value in (ELASTIC if query is None else query).items():
        if isinstance(value, tuple):
            params[f"{name}_min"], params[f"{name}_max"] = value
        else:
            params[name] = ",".join(map(str, value)) if isinstance(value, list) else value
    if not include_gnome:
        params["batch_id_not_eq"] = "gnome_r2scan_statics"
    # a fixed order, or pages could overlap
    return params | {"_fields": ",".join(dict.fromkeys(["material_id", *fields])), "_sort_fields": "material_id"}


def _total(answer: Mapping[str, Any]) -> int:
    meta = answer.get("meta")
    total = meta.get("total_doc") if isinstance(meta, dict) else None
    if not isinstance(total, int) or not isinstance(answer.get("data"), list):
        raise DataError(
            "the Materials Project answered in a form that is not known (no list 'data', no number 'meta.total_doc'); "
            "look for a newer cgnn"
        )
    if total == 0:
        raise DataError("no material fits the query; check its terms")
    return total


def _fill(pages: _Pages, server: Server, request: Mapping[str, Any], total: int) -> None:
    """Fetch the pages that are missing."""
    from tqdm.auto import tqdm

    size = request["page_size"]
    with tqdm(total=total, desc="Materials Project", unit="doc") as bar:
        for number in range(-(-total // size)):
            wanted = min(size, total - number * size)
            if not pages.path(number).is_file():
                params = {**request["params"], "_limit": wanted, "_skip": number * size}
                write_bytes(pages.path(number), _packed(_page(server, params, wanted, total)))
            bar.update(wanted)


def _page(server: Server, params: Mapping[str, Any], wanted: int, total: int) -> list[Any]:
    """Return one page, whole."""
    for attempt in range(ATTEMPTS):
        answer = server.get(_SUMMARY, params)
        if _total(answer) != total:
            raise DataError(
                f"the database changed during the download ({total} documents, now {_total(answer)}); run it again"
            )
        if len(answer["data"]) == wanted:
            return list(answer["data"])
        server.wait(min(2.0**attempt, LONGEST_WAIT))
    raise DataError(
        f"a page from document {params['_skip']} came with {len(answer['data'])} of {wanted} documents, "
        f"{ATTEMPTS} times; run the same command later to go on"
    )


def _packed(documents: list[Any]) -> bytes:
    lines = b"".join(orjson.dumps(document) + b"\n" for document in documents)
    return gzip.compress(lines, compresslevel=5, mtime=0)


def _assemble(pages: _Pages, output: Path, total: int) -> tuple[int, str]:
    """Write the output from the pages and return the count of documents and the file's SHA-256."""
    is_list = ".jsonl" not in output.suffixes
    ids: set[str] = set()
    with replacing(output) as temporary:
        with _writing(temporary, output.name.endswith(".gz")) as handle:
            for line in pages.documents():
                handle.write(_separator(is_list, not ids) + line.rstrip(b"\n"))
                ids.add(str(orjson.loads(line).get("material_id")))
            handle.write(b"\n]\n" if is_list else b"\n")
        if len(ids) != total:
            pages.remove()
            raise DataError(
                f"{output}: {len(ids)} different materials came where the server counts {total} (a page came twice); "
                "nothing was written, run it again"
            )
        with open(temporary, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    return len(ids), digest


def _separator(is_list: bool, is_first: bool) -> bytes:
    if is_list:
        return b"[\n" if is_first else b",\n"
    return b"" if is_first else b"\n"


@contextmanager
def _writing(path: Path, is_packed: bool) -> Iterator[Any]:
    with open(path, "wb") as raw:
        if is_packed:
            with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as handle:
                yield handle
        else:
            yield raw
