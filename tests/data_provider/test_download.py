from __future__ import annotations

import hashlib
import http.server
import io
import logging
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_provider.download import (
    DOWNLOADABLE,
    DataUnavailableError,
    ensure_data,
    ensure_file,
    file_sha256,
    main,
)
from utils.data_sets import DATA_SETS, DataFile
from utils.paths import PROJECT_ROOT

BODY = b"date,OT\n" + b"2020-01-01,1.0\n" * 20_000
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = len(BODY) // 2


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves BODY with ranges; /cut half of a first answer, /plain without ranges, /other another body."""

    asked: list[tuple[str, str | None]] = []
    etag = '"one"'

    def do_GET(self) -> None:
        begin = self.headers.get("Range")
        self.asked.append((self.path, begin))
        if "missing" in self.path:
            self.send_error(404)
            return
        if "slow" in self.path:
            time.sleep(0.5)
        body = BODY.replace(b"1.0", b"2.0") if "other" in self.path else BODY
        if begin and self.headers.get("If-Range") == self.etag and "plain" not in self.path:
            first = int(begin.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
            body = body[first:]
        else:
            self.send_response(200)
        if "untold" not in self.path:
            self.send_header("ETag", self.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        cut = "cut" in self.path and not begin
        self.wfile.write(body[:HALF] if cut else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a local server, asked directly whatever proxy is set."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Handler, "asked", [])
    monkeypatch.setattr(Handler, "etag", '"one"')
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def wanted(url: str, sha256: str | None = SHA256) -> DataFile:
    return DataFile("D.csv", url, sha256)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_file_is_downloaded_checked_and_readable_by_all(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    found = ensure_file(wanted(f"{server}/D.csv"), folder)
    assert found.path == folder / "D.csv" and found.sha256 == SHA256
    assert found.path.read_bytes() == BODY
    assert found.path.stat().st_mode & 0o044 == 0o044
    assert [p.name for p in folder.iterdir()] == ["D.csv"]


def test_without_a_pinned_checksum_the_first_download_is_recorded_and_later_ones_compared(
    server, tmp_path, caplog
):
    with caplog.at_level(logging.INFO):
        ensure_file(wanted(f"{server}/D.csv", None), tmp_path)
    assert "recorded to compare with later" in caplog.text and SHA256 in caplog.text
    assert names(tmp_path) == ["D.csv", "D.csv.sha256"]
    assert (tmp_path / "D.csv.sha256").read_text() == f"{SHA256}  D.csv\n"
    (tmp_path / "D.csv").unlink()
    with caplog.at_level(logging.INFO):
        ensure_file(wanted(f"{server}/D.csv", None), tmp_path)
    assert "as at the first download" in caplog.text
    (tmp_path / "D.csv").unlink()
    with pytest.raises(DataUnavailableError, match=r"recorded in D\.csv\.sha256"):
        ensure_file(wanted(f"{server}/other.csv", None), tmp_path)
    assert names(tmp_path) == ["D.csv.sha256"]


def test_a_file_that_changed_since_its_download_is_told(server, tmp_path, caplog):
    ensure_file(wanted(f"{server}/D.csv", None), tmp_path)
    (tmp_path / "D.csv").write_bytes(BODY + b"2021-01-01,9\n")
    with caplog.at_level(logging.WARNING):
        ensure_file(wanted(f"{server}/D.csv", None), tmp_path)
    assert "recorded at its download" in caplog.text and SHA256 in caplog.text


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
    """A wrong file left in place would be used as it is the next time."""
    with pytest.raises(DataUnavailableError, match=f"sha256 expected {'0' * 64} .pinned., found {SHA256}"):
        ensure_file(wanted(f"{server}/D.csv", "0" * 64), tmp_path)
    assert not names(tmp_path)


def test_a_page_that_is_not_there_is_an_error(server, tmp_path):
    with pytest.raises(DataUnavailableError, match="404"):
        ensure_file(wanted(f"{server}/missing.csv"), tmp_path)
    assert not names(tmp_path)


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_download_that_was_cut_goes_on_where_it_stopped(server, tmp_path, sha256):
    """Traffic has 130 MB: a line that breaks at 90% must not cost 130 MB again."""
    with pytest.raises(DataUnavailableError, match="the connection was cut"):
        ensure_file(wanted(f"{server}/cut.csv", sha256), tmp_path)
    assert (tmp_path / ".D.csv.part").stat().st_size == HALF and not (tmp_path / "D.csv").exists()
    found = ensure_file(wanted(f"{server}/cut.csv", sha256), tmp_path)
    assert found.path.read_bytes() == BODY
    assert Handler.asked == [("/cut.csv", None), ("/cut.csv", f"bytes={HALF}-")]
    assert names(tmp_path) == ["D.csv"] + ["D.csv.sha256"] * (sha256 is None)


@pytest.mark.parametrize("how", ["changed", "plain"])
def test_a_source_that_changed_or_knows_no_ranges_is_fetched_anew(server, tmp_path, monkeypatch, how):
    """Two halves of two files would make one that no one has seen."""
    page = "plain_cut" if how == "plain" else "cut"
    with pytest.raises(DataUnavailableError):
        ensure_file(wanted(f"{server}/{page}.csv"), tmp_path)
    if how == "changed":
        monkeypatch.setattr(Handler, "etag", '"two"')
    whole = page.replace("cut", "whole")
    told = tmp_path / ".D.csv.part.json"
    told.write_text(told.read_text().replace(page, whole))
    assert ensure_file(wanted(f"{server}/{whole}.csv"), tmp_path).path.read_bytes() == BODY
    assert Handler.asked[-1] == (f"/{whole}.csv", f"bytes={HALF}-")


def test_a_part_that_nothing_tells_the_source_of_is_not_used(server, tmp_path):
    with pytest.raises(DataUnavailableError):
        ensure_file(wanted(f"{server}/untold_cut.csv"), tmp_path)
    (tmp_path / ".D.csv.part").write_bytes(b"anything" * 1000)
    ensure_file(wanted(f"{server}/untold.csv"), tmp_path)
    assert Handler.asked[-1] == ("/untold.csv", None)
    assert names(tmp_path) == ["D.csv"]


def test_a_download_that_was_whole_but_not_in_place_is_not_repeated(server, tmp_path):
    """Killed between the last byte and the new name."""
    (tmp_path / ".D.csv.part").write_bytes(BODY)
    url = f"{server}/D.csv"
    note = f'{{"url": "{url}", "validator": "\\"one\\"", "length": {len(BODY)}}}'
    (tmp_path / ".D.csv.part.json").write_text(note)
    assert ensure_file(wanted(url), tmp_path).sha256 == SHA256
    assert not Handler.asked and names(tmp_path) == ["D.csv"]


def test_the_proxy_of_the_environment_is_asked(server, tmp_path, monkeypatch):
    """Behind a proxy no other way leads out."""
    monkeypatch.setenv("http_proxy", server)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    found = ensure_file(wanted("http://data.example.invalid/D.csv"), tmp_path)
    assert found.sha256 == SHA256
    assert Handler.asked == [("http://data.example.invalid/D.csv", None)]


def test_a_refused_connection_is_an_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as taken:  # bound, not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/D.csv"
        with pytest.raises(DataUnavailableError, match="could not be downloaded"):
            ensure_file(wanted(url), tmp_path)


def test_a_silent_host_is_given_up_in_time(tmp_path, monkeypatch):
    """Without a network the name look-up alone can take minutes, and no socket timeout bounds it."""
    released = threading.Event()

    def late(*_: object, **__: object) -> io.BytesIO:
        released.wait(20)
        return io.BytesIO()

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", late)
    began = time.monotonic()
    with pytest.raises(DataUnavailableError, match="no answer within 0.2 s"):
        ensure_file(wanted("http://nowhere.invalid/D.csv"), tmp_path, seconds=0.2)
    assert time.monotonic() - began < 5
    released.set()


def test_an_existing_file_is_used_without_asking_anyone(tmp_path, caplog):
    (tmp_path / "D.csv").write_bytes(BODY)
    with caplog.at_level(logging.WARNING):
        assert ensure_file(wanted("http://127.0.0.1:9/"), tmp_path).path == tmp_path / "D.csv"
    assert not caplog.records


def test_an_existing_file_that_differs_is_used_with_a_warning(tmp_path, caplog):
    other = BODY.replace(b"\n", b"\r\n")
    (tmp_path / "D.csv").write_bytes(other)
    with caplog.at_level(logging.WARNING):
        ensure_file(wanted("http://127.0.0.1:9/"), tmp_path)
    assert SHA256 in caplog.text and hashlib.sha256(other).hexdigest() in caplog.text
    assert (tmp_path / "D.csv").read_bytes() == other


def test_two_processes_at_once_download_once_and_leave_one_whole_file(server, tmp_path):
    """Every process of a distributed run starts with the same empty folder."""
    code = (
        "from pathlib import Path\nfrom data_provider.download import DataFile, ensure_file\n"
        f"ensure_file(DataFile('D.csv', '{server}/slow.csv', {SHA256!r}), Path({str(tmp_path)!r}))"
    )
    both = [subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT) for _ in range(2)]
    assert [process.wait(30) for process in both] == [0, 0]
    assert names(tmp_path) == ["D.csv"] and (tmp_path / "D.csv").read_bytes() == BODY
    assert Handler.asked == [("/slow.csv", None)]


def test_a_process_that_is_killed_leaves_no_lock_behind(server, tmp_path):
    code = (
        "import os\nfrom pathlib import Path\nfrom data_provider import download\n"
        "download._copy = lambda *_, **__: os._exit(9)\n"
        f"download.ensure_file(download.DataFile('D.csv', '{server}/D.csv'), Path({str(tmp_path)!r}))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, timeout=30).returncode == 9
    assert ensure_file(wanted(f"{server}/D.csv"), tmp_path).sha256 == SHA256


def test_only_etth1_has_a_checksum_in_the_code_and_it_is_the_real_files(etth1_root):
    """One copied from somewhere would be believed."""
    pinned = {file.name: file.sha256 for one in DATA_SETS.values() for file in one.files if file.sha256}
    assert pinned == {"ETTh1.csv": file_sha256(Path(etth1_root) / "ETTh1.csv")}


def no_network(*_: Any, **__: Any) -> None:
    raise OSError("no network")


def test_every_data_set_of_the_field_can_be_asked_for():
    assert set(DOWNLOADABLE) == set("ETTh1 ETTh2 ETTm1 ETTm2 ECL Traffic Weather Exchange ILI M4".split())
    for name in DOWNLOADABLE:
        assert all(re.match(r"https://\S+\.csv$", file.url) for file in DATA_SETS[name].files)


@pytest.mark.parametrize("name", DOWNLOADABLE)
def test_offline_every_missing_file_and_its_place_are_named(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", no_network)
    files = DATA_SETS[name].files
    there, missing = files[: name == "M4"], files[name == "M4" :]  # of M4 the first one is there
    for file in there:
        (tmp_path / file.name).write_bytes(BODY)
    assert main([name, "--root_path", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for file in missing:
        assert f"{tmp_path / file.name}  from {file.url}" in said
    assert all(f"{tmp_path / file.name}  from" not in said for file in there)
    assert "no network" in said and "Call this again" in said and "--root_path" in said


def test_the_command_prints_where_the_files_are_and_takes_any_spelling(tmp_path, capsys):
    for file in DATA_SETS["M4"].files:
        (tmp_path / file.name).write_bytes(BODY)
    assert main(["m4", "--root_path", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / f.name) for f in DATA_SETS["M4"].files]


def test_a_data_set_lies_in_its_own_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dataset" / "weather").mkdir(parents=True)
    (tmp_path / "dataset" / "weather" / "weather.csv").write_bytes(BODY)
    assert ensure_data("Weather")[0].path == Path("dataset/weather/weather.csv")


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="ETTh1, ETTh2, ETTm1, ETTm2, ECL, .*, found 'M5'"):
        ensure_data("M5", tmp_path)
