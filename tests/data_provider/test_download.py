from __future__ import annotations

import hashlib
import http.server
import io
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_provider import download
from data_provider.download import FILES, DataFile, DataUnavailableError, ensure_file, main
from utils.config import ETT_NAMES
from utils.paths import PROJECT_ROOT

BODY = b"date,OT\n" + b"2020-01-01,1.0\n" * 20_000
SHA256 = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY, /cut half of it under the full length, /missing a 404, /both two at a time."""

    pair = threading.Barrier(2, timeout=20)

    def do_GET(self) -> None:
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        if self.path == "/both.csv":
            self.pair.wait()
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[: len(BODY) // 2] if self.path == "/cut.csv" else BODY)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local server, asked directly whatever proxy is set."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def table(url: str, sha256: str | None = SHA256) -> dict[str, DataFile]:
    return {"D": DataFile(url, sha256)}


def test_a_file_is_downloaded_checked_and_readable_by_all(server, tmp_path):
    path = ensure_file("D", tmp_path / "new" / "folder", files=table(f"{server}/D.csv"))
    assert path == tmp_path / "new" / "folder" / "D.csv" and path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["D.csv"]


def test_a_file_without_a_pinned_checksum_is_said_to_be_unchecked(server, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        ensure_file("D", tmp_path, files=table(f"{server}/D.csv", None))
    assert "not checked" in caplog.text and SHA256 in caplog.text


@pytest.mark.parametrize(
    ("page", "sha256", "reason"),
    [("D", "0" * 64, f"found {SHA256}"), ("cut", None, "bytes, found"), ("missing", None, "404")],
)
def test_a_bad_download_leaves_nothing_and_says_what_to_do(server, tmp_path, page, sha256, reason):
    """Half a file left in place would be used as it is the next time."""
    with pytest.raises(DataUnavailableError) as caught:
        ensure_file("D", tmp_path, files=table(f"{server}/{page}.csv", sha256))
    for word in (reason, str(tmp_path / "D.csv"), f"{server}/{page}.csv", "--root_path"):
        assert word in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_refused_connection_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/D.csv"
        with pytest.raises(DataUnavailableError, match="could not be downloaded"):
            ensure_file("D", tmp_path, files=table(url))


def test_a_silent_host_is_given_up_in_time(tmp_path, monkeypatch):
    """Without a network the name look-up alone can take minutes, and no socket timeout bounds it."""
    released = threading.Event()

    def late(*_: object, **__: object) -> io.BytesIO:
        released.wait(20)
        return io.BytesIO()

    monkeypatch.setattr(download.urllib.request, "urlopen", late)
    began = time.monotonic()
    with pytest.raises(DataUnavailableError, match="no answer within 0.2 s"):
        ensure_file("D", tmp_path, files=table("http://nowhere.invalid/D.csv"), seconds=0.2)
    assert time.monotonic() - began < 5
    released.set()


def test_an_existing_file_is_used_without_asking_anyone(tmp_path, caplog):
    (tmp_path / "D.csv").write_bytes(BODY)
    with caplog.at_level(logging.WARNING):
        assert ensure_file("D", tmp_path, files=table("http://127.0.0.1:9/")) == tmp_path / "D.csv"
    assert not caplog.records


def test_an_existing_file_that_differs_is_used_with_a_warning(tmp_path, caplog):
    other = BODY.replace(b"\n", b"\r\n")
    (tmp_path / "D.csv").write_bytes(other)
    with caplog.at_level(logging.WARNING):
        ensure_file("D", tmp_path, files=table("http://127.0.0.1:9/"))
    assert SHA256 in caplog.text and hashlib.sha256(other).hexdigest() in caplog.text
    assert (tmp_path / "D.csv").read_bytes() == other


def test_two_processes_at_once_leave_one_whole_file(server, tmp_path):
    """Every process of a distributed run starts with the same empty folder."""
    code = (
        "from data_provider.download import DataFile, ensure_file\n"
        f"ensure_file('D', {str(tmp_path)!r}, files={{'D': DataFile('{server}/both.csv', {SHA256!r})}})"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT) for _ in range(2)]
    assert [process.wait(20) for process in both] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["D.csv"]
    assert (tmp_path / "D.csv").read_bytes() == BODY


def test_the_table_holds_the_four_ett_files_and_pins_the_default():
    assert tuple(FILES) == ETT_NAMES
    assert all(entry.url.endswith(f"/{name}.csv") for name, entry in FILES.items())
    assert FILES["ETTh1"].sha256 is not None and len(FILES["ETTh1"].sha256) == 64


def test_the_real_file_has_the_pinned_checksum(etth1_root):
    assert download.file_sha256(Path(etth1_root) / "ETTh1.csv") == FILES["ETTh1"].sha256


def test_the_command_prints_where_the_file_is(tmp_path, capsys, monkeypatch):
    (tmp_path / "ETTh2.csv").write_bytes(BODY)
    assert main(["ETTh2", "--root_path", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "ETTh2.csv")

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(download.urllib.request, "urlopen", refuse)
    assert main(["ETTm1", "--root_path", str(tmp_path)]) == 1
    assert "save it as" in capsys.readouterr().err


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="ETTh1, ETTh2, ETTm1, ETTm2, found 'M4'"):
        ensure_file("M4", tmp_path)
