"""Fetch the files of a public data set once, checked, or say which file to put where.

``python -m data_provider.download ETTh1 Weather`` does so from the command line; one that was cut off
goes on where it stopped when it is called again. Proxies are those of the environment (``http_proxy``
and ``https_proxy``, ``no_proxy``).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import logging
import os
import queue
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from utils.atomic_files import whole_file
from utils.cli import PathFlag
from utils.data_sets import DATA_SETS, DataFile, known_as
from utils.ending import command
from utils.errors import FileError, UserError

logger = logging.getLogger(__name__)

_CHUNK = 1 << 16
DOWNLOADABLE = tuple(name for name, data_set in DATA_SETS.items() if data_set.files)


class DataUnavailableError(FileError):
    """A data file is neither there nor to be had; the message says what to do."""


class LocalFile(NamedTuple):
    """A file that is there."""

    path: Path
    sha256: str


def ensure_data(
    name: str,
    root_path: str | Path | None = None,
    *,
    wanted: Callable[[DataFile], bool] = lambda file: True,
    seconds: float = 10.0,
) -> list[LocalFile]:
    """The files of a data set of the table, each downloaded first if it is not there.

    Args:
        name: of the data set.
        root_path: the folder, made if need be; by default the table's.
        wanted: which of its files.
        seconds: see `ensure_file`.

    Raises:
        DataUnavailableError: if one can not be had, or not with the checksum it must have; the message
            lists every file that is missing, and its place.
        ValueError: for a name without files in the table.
    """
    if known_as(name) not in DOWNLOADABLE:
        raise UserError(f"download: expected one of {', '.join(DOWNLOADABLE)}, found {name!r}")
    data_set = DATA_SETS[known_as(name)]
    folder = Path(root_path if root_path is not None else data_set.root_path)
    files = [file for file in data_set.files if wanted(file)]
    try:
        return [ensure_file(file, folder, seconds=seconds) for file in files]
    except DataUnavailableError as error:
        missing = [file for file in files if not (folder / file.name).is_file()]
        raise DataUnavailableError(f"{error}\n{_what_to_do(missing, folder)}") from error


def ensure_file(wanted: DataFile, folder: Path, *, seconds: float = 10.0) -> LocalFile:
    """A file in ``folder``, downloaded first if it is not there.

    A file that is there is used as it is; where its checksum is neither the pinned one nor the one
    recorded at its download (line endings may differ) a warning names both. Of several processes that
    ask at once one downloads, and the others wait for it.

    Args:
        wanted: name, address and, where it is pinned, checksum.
        folder: made if need be.
        seconds: time to reach the host, name look-up included; also the longest pause while reading.

    Raises:
        DataUnavailableError: if the file can not be had, or not with the checksum it must have.
    """
    path = folder / wanted.name
    if path.is_file():
        return _as_it_is(wanted, path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_one(path):
            if not path.is_file():  # otherwise another process has fetched it meanwhile
                _download(wanted, path, seconds)
    except (OSError, http.client.HTTPException) as error:
        raise DataUnavailableError(
            f"{path} is not there and could not be downloaded from {wanted.url} "
            f"({type(error).__name__}: {error})"
        ) from error
    return _as_it_is(wanted, path)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _what_to_do(missing: Iterable[DataFile], folder: Path) -> str:
    """Which file to put where."""
    places = "\n".join(f"  {(folder / file.name).absolute()}  from {file.url}" for file in missing)
    return (
        f"Call this again to go on, or get what is missing elsewhere and save it as\n{places}\n"
        "or name the folder that holds it with --root_path"
    )


def _as_it_is(wanted: DataFile, path: Path) -> LocalFile:
    """A file that is there, after a look at its checksum."""
    found, kind = file_sha256(path), "published"
    expected = wanted.sha256
    if expected is None:
        expected, kind = _recorded(path), "recorded at its download"
    if expected not in (None, found):
        logger.warning(
            "%s is not the file that was %s (sha256 expected %s, found %s); used as it is",
            path, kind, expected, found,
        )  # fmt: skip
    return LocalFile(path, found)


def _record_of(path: Path) -> Path:
    """Where the checksum of a download is recorded, as ``sha256sum -c`` reads it."""
    return path.with_name(f"{path.name}.sha256")


def _recorded(path: Path) -> str | None:
    """The checksum recorded when this file was downloaded, or None."""
    record = _record_of(path)
    found = re.match(r"[0-9a-f]{64}\b", record.read_text("utf-8")) if record.is_file() else None
    return found.group() if found else None


@contextlib.contextmanager
def _only_one(path: Path) -> Any:
    """Held by one process at a time, and let go by the system if that one is killed."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process that downloads %s", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
        if path.is_file():  # who waits holds the lock's file open, finds the data, and is done
            Path(lock.lock_file).unlink(missing_ok=True)


def _download(wanted: DataFile, path: Path, seconds: float) -> None:
    """Fetch into ``.<name>.part`` beside ``path``, on from what lies there; check it, move it into place."""
    part = path.with_name(f".{path.name}.part")
    _fetch(wanted.url, part, seconds)
    found = file_sha256(part)
    expected = wanted.sha256 or _recorded(path)
    if expected not in (None, found):
        _forget(part)
        source = "pinned" if wanted.sha256 else f"recorded in {_record_of(path).name}"
        raise OSError(f"sha256 expected {expected} ({source}), found {found}")
    if wanted.sha256 is None and expected is None:
        with whole_file(_record_of(path)) as file:
            file.write(f"{found}  {path.name}\n".encode())
    os.replace(part, path)
    _forget(part)
    checked = "checked"
    if wanted.sha256 is None:
        checked = "as at the first download" if expected else "none is pinned: recorded to compare with later"
    logger.info("downloaded %s to %s (sha256 %s, %s)", wanted.url, path, found, checked)


def _fetch(url: str, part: Path, seconds: float) -> None:
    """The body of ``url`` into ``part``; what an earlier call left there is not fetched again.

    A server tells by ``If-Range`` whether what it has is still what the part was cut from; one that
    gave nothing to tell it by is asked for the whole.
    """
    told = part.with_name(f"{part.name}.json")
    known = json.loads(told.read_text("utf-8")) if told.is_file() and part.is_file() else {}
    there = part.stat().st_size if known.get("url") == url and known.get("validator") else 0
    if there and there == known.get("length"):
        return
    headers = {"Range": f"bytes={there}-", "If-Range": known["validator"]} if there else {}
    response = _open(urllib.request.Request(url, headers=headers), seconds)
    with contextlib.closing(response):
        begin = _first_byte(response) if response.status == 206 else 0
        if begin not in (0, there):
            raise OSError(f"asked for bytes from {there} on, was given those from {begin} on")
        length = response.headers.get("Content-Length")
        total = begin + int(length) if length is not None else None
        validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
        with whole_file(told) as file:
            file.write(json.dumps({"url": url, "validator": validator, "length": total}).encode())
        _copy(response, part, begin=begin, total=total)


def _first_byte(response: http.client.HTTPResponse) -> int:
    """Where a partial answer begins."""
    found = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if found is None:
        raise OSError("a partial answer that does not say which part it is")
    return int(found.group(1))


def _forget(part: Path) -> None:
    """Remove a part and what was noted of it."""
    part.unlink(missing_ok=True)
    part.with_name(f"{part.name}.json").unlink(missing_ok=True)


def _open(request: urllib.request.Request, seconds: float) -> http.client.HTTPResponse:
    """The response to a request within ``seconds`` in all.

    urllib's own timeout does not bound the name look-up and counts anew for each address, so the
    attempt runs in a daemon thread that is left behind when time is up.
    """
    answers: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue(maxsize=1)
    given_up = threading.Event()

    def attempt() -> None:
        try:
            # an opener of its own: urlopen keeps the first call's, with the proxies of that moment
            response = urllib.request.build_opener().open(request, timeout=seconds)
        except Exception as error:  # handed to the caller below
            if isinstance(error, urllib.error.HTTPError):  # it holds the connection
                error.close()
            answers.put(error)
            return
        if given_up.is_set():
            response.close()
        answers.put(response)

    threading.Thread(target=attempt, name="download", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        given_up.set()
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _copy(response: http.client.HTTPResponse, part: Path, *, begin: int, total: int | None) -> None:
    """The body behind the first ``begin`` bytes of ``part``, with a progress bar (on a terminal only)."""
    received = begin
    bar = tqdm(total=total, initial=begin, unit="B", unit_scale=True, desc=part.name[1:-5], disable=None)
    with bar, part.open("r+b" if begin else "wb") as stream:
        stream.seek(begin)
        stream.truncate()
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received != total:
        raise OSError(f"expected {total} bytes, found {received}: the connection was cut")


@command
def main(argv: list[str] | None = None) -> int:
    """Command line: fetch the files of the named data sets and print where they are."""
    parser = argparse.ArgumentParser(prog=f"python -m {__spec__.name}", description=main.__doc__)
    parser.add_argument(
        "names", nargs="+", type=known_as, choices=DOWNLOADABLE, metavar="NAME",
        help=f"data sets to fetch: {', '.join(DOWNLOADABLE)}",
    )  # fmt: skip
    parser.add_argument(
        "--root_path", action=PathFlag, help="folder (default: each data set's own in ./dataset)"
    )
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in args.names:
        for file in ensure_data(name, args.root_path):
            print(file.path)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
