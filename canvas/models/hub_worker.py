"""Talks to the Hub in a process of its own: what hangs or is not wanted any more can be ended.

`hub.py` runs this file, writes one line of JSON to its standard input and reads lines of
JSON. When that input closes, whether because the user stopped the download or because
the program ended, this process ends too. It imports nothing of this program.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx2
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from tqdm.auto import tqdm

INDEX = "model_index.json"
# 10 MiB in the library: at 1 MB/s and three files that is half a minute without a sign of life.
CHUNK = 256 * 1024
# Seconds before each new attempt after a passing failure; finished files are kept.
BACKOFF = (1, 2, 4)
KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (GatedRepoError, "gated"),
    ((RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError), "gone"),
    (HFValidationError, "no_repo_id"),
    (RemoteEntryNotFoundError, "no_file"),
    (OfflineModeIsEnabled, "offline_mode"),
    (httpx2.TimeoutException, "timeout"),
    ((httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol), "offline"),
    ((httpx2.NetworkError, httpx2.RemoteProtocolError), "broken"),
)
# Worth a new attempt. A plan that finds no connection is told so at once.
RETRYABLE = {
    "list": {"server", "broken"},
    "fetch": {"server", "broken", "timeout", "offline", "short"},
}


class ChecksumMismatch(Exception):
    """A file that arrived with other bytes than the repository lists."""


class EventWriter:
    """Writes events to the parent and counts what arrives, from many threads."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._finished = 0
        self._counts = {"written": 0, "received": 0}
        self._news = False

    def send(self, **event: Any) -> None:
        """One event, one line."""
        with self._lock:
            self._output.write(json.dumps(event) + "\n")
            self._output.flush()

    def begin(self, finished: int) -> None:
        """A new attempt, with that many bytes on disk already."""
        self._finished = finished
        self._counts = {"written": 0, "received": 0}
        self.report()

    def count(self, kind: str, bytes_more: float) -> None:
        """More bytes; none is a sign of life."""
        with self._lock:
            self._counts[kind] += int(bytes_more)
            self._news = True

    def report_periodically(self) -> None:
        """Five times a second, if there is news; from a thread, so that the last is told too."""
        while True:
            time.sleep(0.2)
            if self._news:
                self.report()

    def report(self) -> None:
        """Say how far it is."""
        self._news = False
        # Xet writes later than it receives, plain HTTP counts both alike.
        self.send(bytes=self._finished + max(self._counts.values()))

    def bar_class(self) -> type[tqdm[Any]]:
        """A progress bar that draws nothing; the hub makes three, two of which count bytes."""
        reporter = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                self.kind = ""
                if options.get("unit") == "B":
                    is_transfer = "Downloading" in str(options.get("desc"))
                    self.kind = "received" if is_transfer else "written"
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                if self.kind and n:
                    reporter.count(self.kind, n)
                return None

        return Bar


class WarningForwarder(logging.Handler):
    """Hands the library's warnings (retries, rate limits) to the parent."""

    def __init__(self, reporter: EventWriter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        """The first line of one warning."""
        self._reporter.send(note=record.getMessage().splitlines()[0][:300])


def list_files(task: dict[str, Any], reporter: EventWriter) -> dict[str, Any]:
    """The commit, the files with sizes and digests, and the parts of the pipeline."""
    api = HfApi(endpoint=task["endpoint"], token=task["token"])
    repo_id = task["repo_id"]
    revision = api.model_info(repo_id, timeout=task["timeout"]).sha
    reporter.report()
    tree = api.list_repo_tree(repo_id, recursive=True, revision=revision)
    files = {
        entry.path: {"size": entry.size, "digest": _digest(entry)}
        for entry in tree
        if isinstance(entry, RepoFile)
    }
    reporter.report()
    index = None
    if INDEX in files:
        # Not into the cache: looking at a model leaves nothing behind.
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(repo_id, INDEX, revision=revision, local_dir=folder)
            index = Path(path).read_text(encoding="utf-8")
    return {"revision": revision, "files": files, "index": index}


def _digest(entry: RepoFile) -> str:
    return f"sha256:{entry.lfs.sha256}" if entry.lfs else f"git:{entry.blob_id}"


def fetch(task: dict[str, Any], reporter: EventWriter) -> dict[str, Any]:
    """Download the files of the task into the cache and check what arrived."""
    cache = Path(task["cache_dir"])
    folder = (
        cache / f"models--{task['repo_id'].replace('/', '--')}" / "snapshots" / task["revision"]
    )
    files: dict[str, dict[str, Any]] = task["files"]
    for name in files:
        _drop_unless(folder / name, files[name]["size"])
    before = {name for name in files if (folder / name).exists()}
    reporter.begin(sum(files[name]["size"] for name in before))
    snapshot_download(
        task["repo_id"],
        revision=task["revision"],
        allow_patterns=sorted(files),
        cache_dir=cache,
        endpoint=task["endpoint"],
        token=task["token"],
        tqdm_class=reporter.bar_class(),
        etag_timeout=task["timeout"],
    )
    for name in sorted(files.keys() - before):
        _check(folder / name, files[name], reporter)
    reporter.begin(sum(file["size"] for file in files.values()))
    return {"path": str(folder)}


def _drop_unless(pointer: Path, size: int) -> None:
    """Remove a file of another size, or the library would take it for the whole one."""
    if pointer.exists() and pointer.stat().st_size != size:
        _drop(pointer)


def _drop(pointer: Path) -> None:
    pointer.resolve().unlink(missing_ok=True)  # the blob that the snapshot links to
    pointer.unlink(missing_ok=True)


def _check(path: Path, file: dict[str, Any], reporter: EventWriter) -> None:
    kind, _, digest = file["digest"].partition(":")
    size = path.stat().st_size
    found = hashlib.sha256() if kind == "sha256" else hashlib.sha1(usedforsecurity=False)
    if kind == "git":
        found.update(b"blob %d\0" % size)
    for chunk in _chunks(path):
        found.update(chunk)
        reporter.count("written", 0)
    if size != file["size"] or found.hexdigest() != digest:
        _drop(path)
        raise ChecksumMismatch(
            f"{path.name}: {size} of {file['size']} bytes, other content than listed"
        )


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            yield chunk


def describe(error: BaseException) -> dict[str, Any]:
    """The kind of a failure, for the parent to put into words; re-raises what is unforeseen."""
    detail = str(error).strip().splitlines()
    told = {"detail": detail[-1] if detail else type(error).__name__, "status": None}
    if isinstance(error, ChecksumMismatch):
        return {"error": "damaged", **told}
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return describe(error.__cause__)  # LocalEntryNotFoundError wraps what happened
    for types, kind in KINDS:
        if isinstance(error, types):
            return {"error": kind, **told}
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        kind = {401: "bad_token", 403: "gated", 404: "gone", 429: "too_many"}.get(status, "server")
        return {"error": kind, **told, "status": status}
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return {"error": "short", **told}
    if isinstance(error, OSError):
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        return {"error": "disk_full" if full else "disk", **told}
    raise error


def with_retries(
    work: Callable[[dict[str, Any], EventWriter], dict[str, Any]],
    task: dict[str, Any],
    reporter: EventWriter,
) -> dict[str, Any]:
    """Do it, again after failures that may pass."""
    for wait in (*BACKOFF, None):
        try:
            return work(task, reporter)
        except (OSError, ValueError, httpx2.HTTPError, ChecksumMismatch) as error:
            told = describe(error)
            if wait is None or told["error"] not in RETRYABLE[task["do"]]:
                return told
            reporter.send(note=told["detail"])
            time.sleep(wait)
    raise AssertionError("the last attempt returns")


def exit_when_closed(pipe: TextIO) -> None:
    """End this process when the pipe closes, in the middle of whatever it does."""
    pipe.read()
    os._exit(1)


def main() -> None:
    """One task from standard input."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=exit_when_closed, args=(sys.stdin,), daemon=True).start()
    reporter = EventWriter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what a library prints is no event
    logging.getLogger("huggingface_hub").addHandler(WarningForwarder(reporter))
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK
    constants.HF_HUB_DOWNLOAD_TIMEOUT = task["timeout"]
    reporter.report()
    threading.Thread(target=reporter.report_periodically, daemon=True).start()
    work = {"list": list_files, "fetch": fetch}[task["do"]]
    reporter.send(**with_retries(work, task, reporter), done=True)


if __name__ == "__main__":
    main()
