"""The child process of `hub_client`: one request to the Hub, then it exits.

It reads one line of JSON (the task) from stdin and writes events as lines of JSON to stdout. It
exits when stdin closes: the user cancelled, or the parent process ended. It imports nothing of
this package.
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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TextIO

import httpx2
from huggingface_hub import HfApi, constants, file_download, snapshot_download
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
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from tqdm.auto import tqdm

MODEL_INDEX = "model_index.json"
# The library's 10 MiB take half a minute at 1 MB/s and three files: that looks like a stall.
CHUNK_SIZE = 256 * 1024
BACKOFF = (1, 2, 4)  # seconds before each retry; what has arrived is kept
ERROR_KINDS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (GatedRepoError, "gated"),
    ((RepositoryNotFoundError, RevisionNotFoundError, DisabledRepoError), "gone"),
    (HFValidationError, "no_repo_id"),
    (RemoteEntryNotFoundError, "no_file"),
    (OfflineModeIsEnabled, "offline_mode"),
    (httpx2.TimeoutException, "timeout"),
    ((httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol), "offline"),
    ((httpx2.NetworkError, httpx2.RemoteProtocolError), "broken"),
)
# Planning without a connection fails at once.
RETRYABLE = {
    "list": {"server", "broken"},
    "search": {"server", "broken"},
    "fetch": {"server", "broken", "timeout", "offline", "short"},
}
# What a search returns of each model.
EXPAND: list[Any] = ["cardData", "config", "downloads", "gated", "likes", "tags"]
MAX_CONCURRENCY = 8  # requests of a search


class ChecksumMismatch(Exception):
    """A file arrived with other bytes than the repository lists."""


class ResumedMismatch(ChecksumMismatch):
    """The same of a file whose beginning is from an earlier download: a new one may be intact."""


class EventWriter:
    """Writes events to the parent process and counts received bytes; thread-safe."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._lock = threading.Lock()
        self._cached = 0
        self._counts = {"written": 0, "received": 0}
        self._changed = False

    def send(self, **event: Any) -> None:
        with self._lock:
            self._output.write(json.dumps(event) + "\n")
            self._output.flush()

    def start(self, cached: int) -> None:
        """Start an attempt with `cached` bytes on disk."""
        self._cached = cached
        self._counts = {"written": 0, "received": 0}
        self.report()

    def count(self, kind: str, num_bytes: float) -> None:
        """Add received or written bytes; 0 only shows that the process is alive."""
        with self._lock:
            self._counts[kind] += int(num_bytes)
            self._changed = True

    def report_periodically(self) -> None:
        """Report changes five times a second, for ever."""
        while True:
            time.sleep(0.2)
            if self._changed:
                self.report()

    def report(self) -> None:
        self._changed = False
        # Xet writes later than it receives; plain HTTP counts both alike.
        self.send(bytes=self._cached + max(self._counts.values()))

    def tqdm_class(self) -> type[tqdm[Any]]:
        """An invisible progress bar; of the library's three bars, two count bytes."""
        writer = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                self.kind = ""
                if options.get("unit") == "B":
                    self.kind = "received" if "Downloading" in str(options.get("desc")) else "written"
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> bool | None:
                if self.kind and n:
                    writer.count(self.kind, n)
                return None

        return Bar


class WarningForwarder(logging.Handler):
    """Sends the library's warnings (retries, rate limits) to the parent process."""

    def __init__(self, writer: EventWriter) -> None:
        super().__init__(logging.WARNING)
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        self._writer.send(warning=record.getMessage().splitlines()[0][:300])


def list_files(task: dict[str, Any], writer: EventWriter) -> dict[str, Any]:
    """The commit, all files with size and etag, and the text of model_index.json.

    `snapshot_download(dry_run=True)` does not replace this: it returns no etags, sends a request
    for each file, counts truncated files as cached and writes `refs/main` into the cache.
    """
    api = HfApi(endpoint=task["endpoint"], token=task["token"])
    repo_id = task["repo_id"]
    revision = api.model_info(repo_id, timeout=task["timeout"]).sha
    writer.report()
    files = {
        entry.path: {"size": entry.size, "etag": entry.lfs.sha256 if entry.lfs else entry.blob_id}
        for entry in api.list_repo_tree(repo_id, recursive=True, revision=revision)
        if isinstance(entry, RepoFile)
    }
    writer.report()
    index = None
    if MODEL_INDEX in files:
        # A temporary folder: planning must not leave files in the cache.
        with tempfile.TemporaryDirectory() as folder:
            path = api.hf_hub_download(repo_id, MODEL_INDEX, revision=revision, local_dir=folder)
            index = Path(path).read_text(encoding="utf-8")
    return {"revision": revision, "files": files, "index": index}


def search_models(task: dict[str, Any], writer: EventWriter) -> dict[str, Any]:
    """Text-to-image models that match, or those with the `ids`, each with its files and their sizes."""
    api = HfApi(endpoint=task["endpoint"], token=task["token"])
    if task["ids"]:
        found = [api.model_info(repo_id, timeout=task["timeout"], expand=EXPAND) for repo_id in task["ids"]]
    else:
        # `list_models` tries five times, for half a minute; a visitor who searches should hear at once
        headers = build_hf_headers(token=task["token"])
        url = f"{api.endpoint}/api/models"
        hf_raise_for_status(get_session().get(url, params={"limit": 1}, headers=headers, timeout=task["timeout"]))
        found = list(
            api.list_models(
                search=task["search"] or None,
                pipeline_tag="text-to-image",
                filter=task["filter"],
                gated=False if task["open_only"] else None,
                sort=task["sort"],
                limit=task["limit"],
                expand=EXPAND,
            )
        )
    writer.report()

    def describe(model: ModelInfo) -> dict[str, Any]:
        card = model.card_data.to_dict() if model.card_data else {}
        return {
            "id": model.id,
            "likes": model.likes or 0,
            "downloads": model.downloads or 0,
            "gated": bool(model.gated),
            "tags": model.tags or [],
            "class_name": _class_name(model),
            "license": {name: str(card.get(name) or "") for name in ("license", "license_name", "license_link")},
            "files": _file_sizes(api, model.id, writer),
        }

    with ThreadPoolExecutor(MAX_CONCURRENCY) as pool:
        return {"models": list(pool.map(describe, found))}


def _class_name(model: ModelInfo) -> str:
    """The pipeline class from the configuration, or else from the tags."""
    tagged = (tag.removeprefix("diffusers:") for tag in model.tags or [] if tag.startswith("diffusers:"))
    return str((model.config or {}).get("diffusers", {}).get("_class_name") or next(tagged, ""))


def _file_sizes(api: HfApi, repo_id: str, writer: EventWriter) -> dict[str, int] | None:
    """Bytes by path; None if the Hub does not list the files, as of some gated repositories."""
    try:
        entries = list(api.list_repo_tree(repo_id, recursive=True))
    except (HfHubHTTPError, httpx2.HTTPError):
        return None
    writer.count("written", 0)
    return {entry.path: entry.size for entry in entries if isinstance(entry, RepoFile)}


def resume_partial_files(writer: EventWriter) -> None:
    """Make `snapshot_download` continue partial files.

    The library deletes them and starts again, because `flock` does nothing on some network file
    systems. Here two writers at the same time only cause a checksum mismatch. Xet cannot
    continue a file, so plain HTTP is used for all.
    """

    def download(  # noqa: PLR0913, PLR0917 - the signature of the replaced function
        incomplete_path: Path,
        destination_path: Path,
        url_to_download: str,
        headers: dict[str, str],
        expected_size: int | None,
        filename: str,
        force_download: bool,
        etag: str | None,
        xet_file_data: Any,
        tqdm_class: type[tqdm[Any]] | None = None,
    ) -> None:
        if destination_path.exists():
            return
        with incomplete_path.open("ab") as file:
            if expected_size is not None and file.tell() > expected_size:
                file.truncate(0)
                file.seek(0)
            done = file.tell()
            # The progress bar counts them again; `fetch` has already reported them.
            writer.count("written", -done)
            file_download.http_get(
                url_to_download,
                file,
                resume_size=done,
                headers=headers,
                expected_size=expected_size,
                tqdm_class=tqdm_class,
            )
            if done == expected_size:
                writer.count("written", done)
        file_download._chmod_and_move(incomplete_path, destination_path)

    file_download._download_to_tmp_and_move = download
    constants.HF_HUB_DISABLE_XET = True


def fetch(task: dict[str, Any], writer: EventWriter) -> dict[str, Any]:
    """Download the files of the task into the cache and verify their checksums."""
    cache = Path(task["cache_dir"])
    repository = cache / f"models--{task['repo_id'].replace('/', '--')}"
    folder = repository / "snapshots" / task["revision"]
    files: dict[str, dict[str, Any]] = task["files"]
    for name, file in files.items():
        # The library would take a file of another size for the complete one.
        if (folder / name).exists() and (folder / name).stat().st_size != file["size"]:
            _remove(folder / name)
    cached = {name for name in files if (folder / name).exists()}
    partial = {name: _partial_bytes(repository, files[name]) for name in files.keys() - cached}
    writer.start(sum(files[name]["size"] for name in cached) + sum(partial.values()))
    snapshot_download(
        task["repo_id"],
        revision=task["revision"],
        allow_patterns=sorted(files),
        cache_dir=cache,
        endpoint=task["endpoint"],
        token=task["token"],
        tqdm_class=writer.tqdm_class(),
        etag_timeout=task["timeout"],
    )
    for name in sorted(files.keys() - cached):
        _verify(folder / name, files[name], writer, resumed=partial[name] > 0)
    writer.start(sum(file["size"] for file in files.values()))
    return {"path": str(folder)}


def _partial_bytes(repository: Path, file: dict[str, Any]) -> int:
    """Bytes of an earlier download of the file that broke off."""
    path = repository / "blobs" / f"{file['etag']}.incomplete"
    size = path.stat().st_size if path.exists() else 0
    return size if size <= file["size"] else 0


def _remove(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)  # the blob that the snapshot links to
    path.unlink(missing_ok=True)


def _verify(path: Path, file: dict[str, Any], writer: EventWriter, *, resumed: bool) -> None:
    size = path.stat().st_size
    git_object_id = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    digest = hashlib.sha256() if len(file["etag"]) == 64 else git_object_id
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
            writer.count("written", 0)
    if size != file["size"] or digest.hexdigest() != file["etag"]:
        _remove(path)
        kind = ResumedMismatch if resumed else ChecksumMismatch
        raise kind(f"{path.name}: {size} of {file['size']} bytes, other content than listed")


def error_event(error: BaseException) -> dict[str, Any]:
    """The `error` event for an exception; re-raises an unknown one."""
    lines = str(error).strip().splitlines()
    detail = {"detail": lines[-1] if lines else type(error).__name__, "status": None}
    if isinstance(error, ChecksumMismatch):
        return {"error": "damaged", **detail}
    if isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        return error_event(error.__cause__)  # LocalEntryNotFoundError wraps the reason
    for types, kind in ERROR_KINDS:
        if isinstance(error, types):
            return {"error": kind, **detail}
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        kind = {401: "bad_token", 403: "gated", 404: "gone", 429: "too_many"}.get(status, "server")
        return {"error": kind, **detail, "status": status}
    if isinstance(error, OSError) and "Consistency check" in str(error):
        return {"error": "short", **detail}
    if isinstance(error, OSError):
        return {"error": "disk_full" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "disk", **detail}
    raise error


def with_retries(
    action: Callable[[dict[str, Any], EventWriter], dict[str, Any]], task: dict[str, Any], writer: EventWriter
) -> dict[str, Any]:
    """Run an action, again after temporary failures; returns its result or an `error` event."""
    for delay in (*BACKOFF, None):
        try:
            return action(task, writer)
        except (OSError, ValueError, httpx2.HTTPError, ChecksumMismatch) as error:
            event = error_event(error)
            retryable = event["error"] in RETRYABLE[task["action"]] or isinstance(error, ResumedMismatch)
            if delay is None or not retryable:
                return event
            writer.send(warning=event["detail"])
            time.sleep(delay)
    raise AssertionError("the last attempt returns")


def exit_when_closed(pipe: TextIO) -> None:
    """End this process as soon as the pipe closes."""
    pipe.read()
    os._exit(1)


def main() -> None:
    """Run the task on stdin."""
    task = json.loads(sys.stdin.readline())
    threading.Thread(target=exit_when_closed, args=(sys.stdin,), daemon=True).start()
    writer = EventWriter(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what libraries print must not mix with events
    logging.getLogger("huggingface_hub").addHandler(WarningForwarder(writer))
    constants.DOWNLOAD_CHUNK_SIZE = CHUNK_SIZE
    # A stalled connection is replaced before the parent process gives up.
    constants.HF_HUB_DOWNLOAD_TIMEOUT = task["timeout"] / 3
    resume_partial_files(writer)
    writer.report()
    threading.Thread(target=writer.report_periodically, daemon=True).start()
    action = {"list": list_files, "search": search_models, "fetch": fetch}[task["action"]]
    writer.send(**with_retries(action, task, writer), done=True)


if __name__ == "__main__":
    main()
