"""The download against a simulated server: whole, or it says it is not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest

from cgnn.data import mp, mp_server
from cgnn.data.records import Record, read
from cgnn.errors import DataError, MissingPackageError

KEY = "SentinelKey0123456789abcdefABCDE"
STRUCTURE = {
    "@module": "pymatgen.core.structure",
    "@class": "Structure",
    "lattice": {"matrix": [[3.6, 0, 0], [0, 3.6, 0], [0, 0, 3.6]]},
    "sites": [{"species": [{"element": "Cu", "occu": 1}], "abc": [0, 0, 0]}],
}
DOCUMENTS = [
    {"material_id": f"mp-{number}", "structure": STRUCTURE, "bulk_modulus": {"vrh": 100.0 + number}}
    for number in range(23)
]
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """The Materials Project in small; ``server.script`` holds answers that come first, for summary requests."""

    server: Any

    def do_GET(self) -> None:
        url = urlparse(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/heartbeat":
            self.send({"version": "0.87.3", "db_version": self.server.version, "access_controlled_batch_ids": []})
            return
        self.server.seen.append((query, self.headers.get("x-api-key")))
        if self.server.script:
            answer = self.server.script.pop(0)
            if answer is not None:
                answer(self)
                return
        self.page(query)

    def page(self, query: dict[str, str]) -> None:
        skip = int(query.get("_skip", 0))
        self.send(
            {
                "data": DOCUMENTS[skip : skip + int(query["_limit"])],
                "meta": {"total_doc": len(DOCUMENTS)},
            }
        )

    def send(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def status(code: int, content: Any = b"", **headers: str) -> Answer:
    return lambda handler: handler.send(content, code, **headers)


def reset(handler: Handler) -> None:
    """Half an answer, then the connection is reset."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b'{"data": [')
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    made.script, made.seen, made.version = [], [], "2026.11.01"
    made.url = f"http://127.0.0.1:{made.server_address[1]}"
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.delenv("MP_API_ENDPOINT", raising=False)
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def fetch(server: Any, output: Path, **more: Any) -> tuple[dict[str, Any], list[float]]:
    pauses: list[float] = []
    manifest = mp.fetch(output, endpoint=server.url, page_size=5, wait=pauses.append, **more)
    return manifest, pauses


@pytest.mark.parametrize("name", ["mp.json.gz", "mp.jsonl.gz", "mp.json", "mp.jsonl"])
def test_a_download_is_read_back_whole(server: Any, tmp_path: Path, name: str) -> None:
    output = tmp_path / name
    manifest, pauses = fetch(server, output)
    items = list(read(output))
    assert all(isinstance(item, Record) for item in items)
    assert [item.material_id for item in items] == [document["material_id"] for document in DOCUMENTS]
    assert items[3].values["bulk_modulus.vrh"] == 103.0  # type: ignore[union-attr]
    assert manifest["count"] == 23
    assert manifest["database_version"] == "2026.11.01"
    assert manifest["sha256"] == hashlib.sha256(output.read_bytes()).hexdigest()
    assert "CC BY 4.0" in manifest["licence"]
    assert json.loads((tmp_path / f"{name}.manifest.json").read_text()) == manifest
    assert not pauses
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([name, f"{name}.manifest.json"])


def test_the_query_is_sent_as_the_interface_wants_it(server: Any, tmp_path: Path) -> None:
    fetch(server, tmp_path / "a.jsonl", query={"g_vrh": (1, 9), "elements": ["Fe", "O"]}, fields=["structure"])
    query, key = server.seen[-1]
    assert key == KEY
    assert (query["g_vrh_min"], query["g_vrh_max"], query["elements"]) == ("1", "9", "Fe,O")
    assert query["_fields"] == "material_id,structure"
    assert query["batch_id_not_eq"] == "gnome_r2scan_statics"
    assert (query["deprecated"], query["_sort_fields"]) == ("False", "material_id")


def test_gnome_is_asked_for_by_name_and_its_licence_is_said(server: Any, tmp_path: Path) -> None:
    manifest, _ = fetch(server, tmp_path / "a.jsonl", include_gnome=True)
    assert "batch_id_not_eq" not in server.seen[-1][0]
    assert "NC" in manifest["licence"]


@pytest.mark.parametrize(
    ("trouble", "pause"),
    [
        (status(429, Retry_After="7"), 7.0),
        (status(429, Retry_After="100000"), mp_server.LONGEST_WAIT),
        (status(429, Retry_After="Thu, 01 Jan 2015 00:00:00 GMT"), 0.0),
        (status(429, Retry_After="soon"), 1.0),
        (status(429), 1.0),
        (status(500), 1.0),
        (status(502), 1.0),
        (status(504), 1.0),
        (status(200, b"<!DOCTYPE html><title>Log in</title>"), 1.0),
        (status(200, b'{"data": ['), 1.0),
        (status(200, {"data": [], "meta": {"total_doc": 23}}), 1.0),
        (reset, 1.0),
    ],
    ids=[
        "429-after", "429-long", "429-date", "429-odd", "429", "500", "502", "504", "html", "cut", "empty", "reset",
    ],
)  # fmt: skip
def test_passing_trouble_is_waited_out(server: Any, tmp_path: Path, trouble: Answer, pause: float) -> None:
    server.script = [None, None, trouble]
    manifest, pauses = fetch(server, tmp_path / "a.jsonl")
    assert manifest["count"] == 23
    assert pauses == [pause]


def test_waiting_grows_and_ends(server: Any, tmp_path: Path) -> None:
    server.script = [None, None] + [status(503)] * 50
    with pytest.raises(DataError, match=r"status 503, 6 times; run the same command later"):
        fetch(server, tmp_path / "a.jsonl")
    assert len(server.seen) == 2 + mp_server.ATTEMPTS
    assert not (tmp_path / "a.jsonl").exists()


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (status(401), "API key was refused .*MP_API_KEY"),
        (status(403), "API key was refused .*MP_API_KEY"),
        (status(404), "not found .*endpoint"),
        (
            status(422, {"detail": [{"loc": ["query", "k"], "msg": f"bad {KEY}"}]}),
            r"refused with status 422.*bad \*\*\*",
        ),
        (status(302, Location="http://127.0.0.1:1/"), "status 302"),
        (status(200, {"response": [], "valid_response": True}), "a form that is not known"),
        (status(200, {"data": [], "meta": {"total_doc": 0}}), "no material fits"),
    ],
    ids=["401", "403", "404", "422", "302", "old-schema", "none"],
)
def test_lasting_trouble_is_said_at_once(server: Any, tmp_path: Path, answer: Answer, message: str) -> None:
    server.script = [answer]
    with pytest.raises(DataError, match=message):
        fetch(server, tmp_path / "a.jsonl")
    assert len(server.seen) == 1


def test_a_page_that_comes_twice_is_noticed(server: Any, tmp_path: Path) -> None:
    server.script = [None, None, lambda handler: handler.page({"_limit": "5", "_skip": "0"})]
    with pytest.raises(DataError, match="18 different materials came where the server counts 23"):
        fetch(server, tmp_path / "a.jsonl")
    assert not list(tmp_path.iterdir())


def test_a_page_that_stays_short_is_noticed(server: Any, tmp_path: Path) -> None:
    short = status(200, {"data": DOCUMENTS[5:8], "meta": {"total_doc": 23}})
    server.script = [None, None] + [short] * mp_server.ATTEMPTS
    with pytest.raises(DataError, match="from document 5 came with 3 of 5 documents, 6 times"):
        fetch(server, tmp_path / "a.jsonl")


def test_a_database_that_changes_is_noticed(server: Any, tmp_path: Path) -> None:
    server.script = [None, None, status(200, {"data": DOCUMENTS[5:10], "meta": {"total_doc": 24}})]
    with pytest.raises(DataError, match="database changed during the download"):
        fetch(server, tmp_path / "a.jsonl")


def test_an_answer_that_drips_is_given_up(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mp_server, "PAGE_SECONDS", 0.3)
    server.script = [None, drip]
    manifest, pauses = fetch(server, tmp_path / "a.jsonl")
    assert (manifest["count"], pauses) == (23, [1.0])


def test_a_stopped_download_goes_on_where_it_was(server: Any, tmp_path: Path) -> None:
    server.script = [None, None, None, status(401)]
    with pytest.raises(DataError, match="refused"):
        fetch(server, tmp_path / "a.json.gz")
    assert len(list((tmp_path / "a.json.gz.partial").glob("page-*"))) == 2
    server.seen.clear()
    fetch(server, tmp_path / "a.json.gz")
    assert [query.get("_skip") for query, _ in server.seen] == [None, "10", "15", "20"]
    assert len(list(read(tmp_path / "a.json.gz"))) == 23


def test_pages_of_another_request_or_database_are_not_mixed(server: Any, tmp_path: Path) -> None:
    server.script = [None, None, status(401)]
    with pytest.raises(DataError, match="refused"):
        fetch(server, tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="pages of another request"):
        fetch(server, tmp_path / "a.jsonl", fields=["structure", "band_gap"])
    server.version = "2026.12.01"
    server.seen.clear()
    manifest, _ = fetch(server, tmp_path / "a.jsonl")
    assert manifest["database_version"] == "2026.12.01"
    assert len(server.seen) == 6


def test_a_killed_download_goes_on_where_it_was(server: Any, tmp_path: Path) -> None:
    hang = threading.Event()
    server.script = [None, None, None, lambda handler: hang.wait(30)]
    output = tmp_path / "a.jsonl.gz"
    code = f"from cgnn.data.mp import fetch; fetch({str(output)!r}, endpoint={server.url!r}, page_size=5)"
    child = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"MP_API_KEY": KEY}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(server.seen) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    _, said = child.communicate()
    hang.set()
    assert KEY.encode() not in said
    assert not output.exists()
    server.seen.clear()
    fetch(server, output)
    assert [query.get("_skip") for query, _ in server.seen] == [None, "10", "15", "20"]
    assert len(gzip.decompress(output.read_bytes()).splitlines()) == 23


def test_the_key_stays_in_memory(server: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.script = [None, status(500, KEY.encode()), reset, None, status(422, {"detail": f"no {KEY}"})]
    with pytest.raises(DataError, match="422") as caught:
        fetch(server, tmp_path / "a.jsonl")
    chain: BaseException | None = caught.value
    while chain is not None:
        assert KEY not in str(chain)
        chain = chain.__cause__ or chain.__context__
    fetch(server, tmp_path / "a.jsonl")
    assert KEY not in "".join(capfd.readouterr())
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or KEY.encode() not in file.read_bytes()


@pytest.mark.parametrize("key", ["", "short", "not a key, but thirty-two long!!"])
def test_a_missing_key_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("MP_API_KEY", key)
    with pytest.raises(DataError, match=r"API key .*materialsproject\.org/api.*MP_API_KEY") as caught:
        mp.fetch(tmp_path / "a.json")
    assert not key or key not in str(caught.value)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(DataError, match="no answer"):
        mp.fetch(tmp_path / "a.json", api_key=KEY, endpoint=url, wait=lambda _: None)


def test_outputs_that_can_not_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"must end in \.json"):
        mp.fetch(tmp_path / "a.csv", api_key=KEY)
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(DataError, match="is there already"):
        mp.fetch(tmp_path / "a.json", api_key=KEY)
    with pytest.raises(DataError, match="starts with https"):
        mp.fetch(tmp_path / "b.json", api_key=KEY, endpoint="api.materialsproject.org")


def test_without_mp_api_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mp_api.client", None)
    with pytest.raises(MissingPackageError, match=r'pip install "cgnn\[mp\]"'):
        mp.fetch(tmp_path / "a.json", api_key=KEY)


def test_provenance_reads_the_manifest_beside_an_export(tmp_path: Path) -> None:
    export = tmp_path / "export.json.gz"
    assert mp.provenance(export) == {"file": "export.json.gz"}
    manifest = tmp_path / "export.json.gz.manifest.json"
    manifest.write_text(json.dumps({"database_version": "2026.04.1", "licence": "CC BY 4.0", "count": 3}))
    assert mp.provenance(export) == {
        "file": "export.json.gz", "database_version": "2026.04.1", "licence": "CC BY 4.0",
    }  # fmt: skip
    manifest.write_text("not json")
    assert mp.provenance(export) == {"file": "export.json.gz"}
