"""Fetch a public data file once, checked, or say which file to put where.

``python -m data_provider.download ETTh1`` does so from the command line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import logging
import os
import queue
import sys
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from tqdm import tqdm

from utils.config import DataConfig

logger = logging.getLogger(__name__)

_ETT_FOLDER = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small"
_CHUNK = 1 << 16


class DataFile(NamedTuple):
    """Where a file comes from and what it must be."""

    url: str
    sha256: str | None
    """Expected checksum, or None where none is pinned (the download then says so)."""


class DataUnavailableError(OSError):
    """A data file is neither there nor to be had; the message says what to do."""


FILES: Mapping[str, DataFile] = {
    "ETTh1": DataFile(
        f"{_ETT_FOLDER}/ETTh1.csv", "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
    ),
    "ETTh2": DataFile(f"{_ETT_FOLDER}/ETTh2.csv", None),
    "ETTm1": DataFile(f"{_ETT_FOLDER}/ETTm1.csv", None),
    "ETTm2": DataFile(f"{_ETT_FOLDER}/ETTm2.csv", None),
}


def ensure_file(
    name: str, root_path: str | Path, *, files: Mapping[str, DataFile] = FILES, seconds: float = 10.0
) -> Path:
    """The path of ``<root_path>/<name>.csv``, downloaded first if it is not there.

    A file that is there is used as it is; where its checksum is not the pinned one (line endings
    may differ) a warning names both. Two processes may ask at once: each writes its own temporary
    file and moves it into place as a whole.

    Args:
        name: a key of ``files``.
        root_path: the folder, made if need be.
        files: what can be downloaded.
        seconds: time to reach the host, name look-up included; also the longest pause while reading.

    Raises:
        DataUnavailableError: if the file can not be had, or not with the pinned checksum.
        ValueError: for a name that is not in ``files``.
    """
    if name not in files:
        raise ValueError(f"download: expected one of {', '.join(files)}, found {name!r}")
    path = Path(root_path) / f"{name}.csv"
    wanted = files[name]
    if path.is_file():
        found = file_sha256(path)
        if wanted.sha256 not in (None, found):
            logger.warning(
                "%s is not the published file (sha256 expected %s, found %s); used as it is",
                path, wanted.sha256, found,
            )  # fmt: skip
        return path
    try:
        _download(wanted, path, seconds)
    except (OSError, http.client.HTTPException) as error:
        raise DataUnavailableError(
            f"{path} is not there and could not be downloaded from {wanted.url} "
            f"({type(error).__name__}: {error}). Get {name}.csv elsewhere and save it as "
            f"{path.absolute()}, or name the folder that holds it with --root_path"
        ) from error
    return path


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download(wanted: DataFile, path: Path, seconds: float) -> None:
    """Fetch into a temporary file beside ``path``, check it, and move it into place."""
    response = _open(wanted.url, seconds)
    with contextlib.closing(response):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        try:
            with os.fdopen(handle, "wb") as stream:
                found = _copy(response, stream, path.name)
            if wanted.sha256 not in (None, found):
                raise OSError(f"sha256 expected {wanted.sha256}, found {found}")
            os.chmod(temporary, 0o644)  # mkstemp makes it private, data files are shared
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
    checked = "checked" if wanted.sha256 else "no checksum is pinned for it, so it was not checked"
    logger.info("downloaded %s to %s (sha256 %s, %s)", wanted.url, path, found, checked)


def _open(url: str, seconds: float) -> http.client.HTTPResponse:
    """The response to a GET of ``url`` within ``seconds`` in all.

    urllib's own timeout does not bound the name look-up and counts anew for each address, so the
    attempt runs in a daemon thread that is left behind when time is up.
    """
    answers: queue.Queue[http.client.HTTPResponse | Exception] = queue.Queue(maxsize=1)
    given_up = threading.Event()

    def attempt() -> None:
        try:
            response = urllib.request.urlopen(url, timeout=seconds)
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


def _copy(response: http.client.HTTPResponse, stream: IO[bytes], label: str) -> str:
    """Copy the body with a progress bar (on a terminal only) and return its sha256."""
    length = response.headers.get("Content-Length")
    total = int(length) if length is not None else None
    digest, received = hashlib.sha256(), 0
    with tqdm(total=total, unit="B", unit_scale=True, desc=label, disable=None) as bar:
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            digest.update(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    if total is not None and received != total:
        raise OSError(f"expected {total} bytes, found {received}: the connection was cut")
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    """Command line: fetch the named files and print where they are."""
    parser = argparse.ArgumentParser(prog="python -m data_provider.download", description=main.__doc__)
    parser.add_argument("names", nargs="+", choices=list(FILES), help="data sets to fetch")
    parser.add_argument("--root_path", default=DataConfig.root_path, help="folder [%(default)s]")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        for name in args.names:
            print(ensure_file(name, args.root_path))
    except DataUnavailableError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
