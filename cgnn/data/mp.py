"""Download of a Materials Project export through mp-api: in pages, resumable, counted and checked."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import orjson

from cgnn.errors import DataError, MissingPackageError
from cgnn.files import replacing, write_bytes, write_json

ENDPOINT = "https://api.materialsproject.org/"
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

ATTEMPTS = 6
LONGEST_WAIT = 120.0
"""Cap of a pause between attempts (s), also for the server's ``Retry-After``."""
PAGE_SECONDS = 300.0
"""Longest time one answer may take (s)."""
PAGE_BYTES = 512 * 2**20
_READ_TIMEOUT = 60.0
_AGAIN = {408, 425, 429, 500, 502, 503, 504, 520, 522, 524}
_SUMMARY = "materials/summary/"
_LOG = logging.getLogger(__name__)


@dataclass
class _Server:
    """The endpoint, with patience."""

    session: Any
    endpoint: str
    key: str
    wait: Callable[[float], None]

    def get(self, path: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the JSON object at a path; passing troubles are waited out.

        Raises:
            DataError: The key is refused, the query is refused, or the server fails for good.
        """
        trouble = ""
        for attempt in range(ATTEMPTS):
            pause = min(2.0**attempt, LONGEST_WAIT)
            try:
                status, retry_after, body = self._ask(path, params)
            except _passing_errors() as error:
                trouble = self._hidden(f"no answer ({type(error).__name__})")
            else:
                answer = _json_object(body) if status == 200 else None
                if answer is not None:
                    return answer
                trouble = self._judge(status, body, path)
                pause = min(retry_after, LONGEST_WAIT) if retry_after is not None else pause
            if attempt < ATTEMPTS - 1:
                _LOG.info("%s%s: %s; trying again in %.0f s", self.endpoint, path, trouble, pause)
                self.wait(pause)
        raise DataError(f"{self.endpoint}{path}: {trouble}, {ATTEMPTS} times; run the same command later to go on")

    def _ask(self, path: str, params: Mapping[str, Any]) -> tuple[int, float | None, bytes]:
        # redirects are not followed: the key would go along
        with self.session.get(
            self.endpoint + path, params=params, timeout=_READ_TIMEOUT, stream=True, allow_redirects=False
        ) as response:
            retry_after = _retry_after(response.headers.get("Retry-After"))
            return response.status_code, retry_after, _body(response)

    def _judge(self, status: int, body: bytes, path: str) -> str:
        """Return a passing trouble in words; raise for a lasting one."""
        where = f"{self.endpoint}{path}"
        if status in (401, 403):
            raise DataError(
                f"{where}: the API key was refused (status {status}); copy yours from "
                "https://materialsproject.org/api into the environment variable MP_API_KEY"
            )
        if status == 200:
            what = "a web page" if body.lstrip()[:1] == b"<" else "something that is not JSON"
            return f"the server sent {what} (is there a proxy or a log-in page in between?)"
        if status in _AGAIN:
            return f"the server answered with status {status}"
        if status == 404:
            raise DataError(f"{where}: not found (status 404); is the endpoint right?")
        said = self._hidden(" ".join(body[:300].decode("utf-8", "replace").split()))
        raise DataError(f"{where}: the request was refused with status {status}; check query and fields ({said})")

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "***")


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
        old = _json_object(file.read_bytes()) if file.is_file() else None
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
    server, database = _connect(api_key, endpoint, wait)
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


def _connect(api_key: str | None, endpoint: str | None, wait: Callable[[float], None]) -> tuple[_Server, str | None]:
    """Return the server behind mp-api's session, and the version of its database."""
    key = (api_key or os.environ.get("MP_API_KEY") or "").strip()
    if len(key) != 32 or not key.isalnum():
        got = "there is none" if not key else "what is there is not one: a key has 32 letters and digits"
        raise DataError(
            f"an API key of the Materials Project is needed, and {got}; copy yours from "
            "https://materialsproject.org/api into the environment variable MP_API_KEY"
        )
    endpoint = endpoint or os.environ.get("MP_API_ENDPOINT") or ENDPOINT
    if not endpoint.startswith(("https://", "http://")):
        raise DataError(f"{endpoint}: an endpoint starts with https://")
    endpoint = endpoint if endpoint.endswith("/") else endpoint + "/"
    rester, adapter, session = _packages()
    with session() as plain:  # mp-api would wait here without a limit
        heartbeat = _Server(plain, endpoint, key, wait).get("heartbeat", {})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = rester(api_key=key, endpoint=endpoint, mute_progress_bars=True, use_document_model=False)
    except Exception as error:  # mp-api raises whatever its own code meets
        raise DataError(f"{endpoint}: mp-api could not connect: {error}".replace(key, "***")) from None
    # mp-api's own retries know no cap and no damaged answers
    for scheme in ("http://", "https://"):
        found.session.mount(scheme, adapter(max_retries=0))
    return _Server(found.session, endpoint, key, wait), heartbeat.get("db_version")


def _packages() -> tuple[Any, Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mp_api.client import MPRester
            from requests import Session
            from requests.adapters import HTTPAdapter
    except ImportError:
        raise MissingPackageError('downloading needs mp-api: pip install "cgnn[mp]"') from None
    return MPRester, HTTPAdapter, Session


def _passing_errors() -> tuple[type[Exception], ...]:
    from urllib3.exceptions import HTTPError

    return (OSError, HTTPError, ValueError)


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


def _fill(pages: _Pages, server: _Server, request: Mapping[str, Any], total: int) -> None:
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


def _page(server: _Server, params: Mapping[str, Any], wanted: int, total: int) -> list[Any]:
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


def _body(response: Any) -> bytes:
    """Return an answer's content; one that drips or never ends is given up."""
    deadline = time.monotonic() + PAGE_SECONDS
    parts: list[bytes] = []
    size = 0
    while part := response.raw.read1(2**16, decode_content=True):
        parts.append(part)
        size += len(part)
        if size > PAGE_BYTES or time.monotonic() > deadline:
            raise TimeoutError("the answer takes too long")
    return b"".join(parts)


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _retry_after(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
