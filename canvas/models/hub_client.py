"""Runs requests to the Hugging Face Hub in a child process that can be killed at any time."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from canvas.errors import (
    CanvasError,
    DiskFull,
    DownloadCancelled,
    DownloadFailed,
    HubOffline,
    LazyMessage,
    ModelCorrupted,
    ModelGated,
    ModelNotFound,
)

WORKER_PATH = Path(__file__).with_name("hub_worker.py")
STARTUP_TIMEOUT = 120.0  # seconds for a new Python to import the library from a busy disk
STATUS_TIMEOUT = 8.0  # seconds
RETRY = "What has arrived is kept; try again."
ERROR_MESSAGES: Mapping[str, tuple[type[CanvasError], str]] = {
    "gated": (
        ModelGated,
        "{repo_id} is a gated repository: accept the terms at https://huggingface.co/{repo_id} and set HF_TOKEN.",
    ),
    "bad_token": (
        ModelGated,
        "The Hub rejected the token. Create a new one at https://huggingface.co/settings/tokens and set HF_TOKEN.",
    ),
    "gone": (ModelNotFound, "{repo_id} does not exist on the Hub or is private."),
    "no_repo_id": (ModelNotFound, "{repo_id} is neither a local file or folder nor a repository ID."),
    "no_file": (ModelCorrupted, "{repo_id} lists a file that the Hub does not have: {detail}"),
    "offline": (HubOffline, "The Hub cannot be reached; check the connection."),
    "offline_mode": (HubOffline, "HF_HUB_OFFLINE is set; unset it to download."),
    "timeout": (DownloadFailed, "The Hub did not respond in time. {retry}"),
    "broken": (DownloadFailed, "The connection was lost repeatedly ({detail}). {retry}"),
    "short": (DownloadFailed, "A file arrived incomplete repeatedly. {retry}"),
    "damaged": (DownloadFailed, "A file arrived damaged and was removed ({detail}). {retry}"),
    "too_many": (DownloadFailed, "The rate limit of the Hub is exceeded. Set HF_TOKEN, or try again in a few minutes."),
    "server": (DownloadFailed, "The Hub returned an error (status {status}). {retry}"),
    "disk_full": (DiskFull, "The disk is full. What has arrived is kept; free some space and try again."),
    "disk": (DownloadFailed, "The cache folder cannot be used: {detail}."),
}
HubEvent = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """How to reach the Hub and where to cache; None is the default of huggingface_hub.

    A server that sends nothing for `timeout` seconds counts as stalled.
    """

    endpoint: str | None = None
    cache_dir: Path | None = None
    token: str | None = None
    timeout: float = 30.0

    @property
    def cache(self) -> Path:
        """The absolute path of the cache folder."""
        from huggingface_hub import constants

        return (self.cache_dir or Path(constants.HF_HUB_CACHE)).expanduser().absolute()

    def repo_folder(self, repo_id: str) -> Path:
        return self.cache / f"models--{repo_id.replace('/', '--')}"


def call(
    hub: Hub,
    task: Mapping[str, Any],
    *,
    on_bytes: Callable[[int], None] | None = None,
    cancelled: threading.Event | None = None,
) -> HubEvent:
    """Run a task of `hub_worker` and return its result; raises ModelUnavailable.

    `task["action"]` is "list", "search" or "fetch". `on_bytes` is called in this thread.
    """
    cancelled = cancelled or threading.Event()
    task = {**task, "endpoint": hub.endpoint, "cache_dir": str(hub.cache), "token": hub.token, "timeout": hub.timeout}
    last_bytes = -1
    with _child_process(task) as (lines, stderr):
        for event in _events(lines, hub.timeout, cancelled):
            if "error" in event:
                raise to_error(task["repo_id"], event)
            if event.get("done"):
                return event
            if on_bytes and event.get("bytes", last_bytes) != last_bytes:
                last_bytes = event["bytes"]
                on_bytes(last_bytes)
        stderr.seek(0)
        reasons = stderr.read().decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise DownloadFailed(f"The download process ended unexpectedly: {reasons[-1]}")


def to_error(repo_id: str, event: HubEvent) -> CanvasError:
    """The error for an `error` event of the child process."""
    kind, message = ERROR_MESSAGES[event["error"]]
    return kind(LazyMessage(message, repo_id=repo_id, retry=LazyMessage(RETRY), **event))


def _events(lines: queue.Queue[str | None], timeout: float, cancelled: threading.Event) -> Iterator[HubEvent]:
    """Events until the child process ends; raises DownloadCancelled, or DownloadFailed."""
    warning, deadline = "", time.monotonic() + STARTUP_TIMEOUT
    while True:
        if cancelled.is_set():
            raise DownloadCancelled("The download was cancelled. What has arrived is kept.")
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            if time.monotonic() > deadline:
                reason = f" ({warning})" if warning else ""
                raise DownloadFailed(
                    f"The Hub sent nothing for {timeout:.0f} seconds{reason}. "
                    "What has arrived is kept; try again later."
                ) from None
            continue
        if line is None:
            return
        event = json.loads(line)
        warning = event.get("warning", warning)
        # Warnings do not extend the deadline: five retries of a dead server take minutes.
        if "bytes" in event:
            deadline = time.monotonic() + timeout
        yield event


@contextmanager
def _child_process(task: Mapping[str, Any]) -> Iterator[tuple[queue.Queue[str | None], IO[bytes]]]:
    """Start the worker; yields its lines of output (None at the end) and its stderr."""
    with tempfile.TemporaryFile() as stderr:
        child = subprocess.Popen(  # noqa: S603 - our own program, started by its path
            # -P: modules beside the worker must not shadow packages of the same name.
            [sys.executable, "-P", str(WORKER_PATH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            encoding="utf-8",
        )
        assert child.stdin and child.stdout  # noqa: S101 - both are pipes
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read_lines, args=(child.stdout, lines), daemon=True)
        reader.start()
        try:
            with suppress(BrokenPipeError):  # the child ended at once: `lines` ends, too
                child.stdin.write(json.dumps(task) + "\n")
                child.stdin.flush()
            yield lines, stderr
        finally:
            child.kill()
            child.wait()
            reader.join()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()


def _read_lines(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


@dataclass(frozen=True)
class HubStatus:
    """`user` owns the token ("" without one); `offline` and `auth_error` are problems, or ""."""

    user: str = ""
    offline: str = ""
    auth_error: str = ""


def check_hub(endpoint: str | None = None, token: str | None = None) -> HubStatus:
    """Ask the Hub once who owns the token; the defaults are those of huggingface_hub."""
    import httpx
    from huggingface_hub import constants, get_token

    token = token or get_token()
    url = f"{endpoint or constants.ENDPOINT}/api/whoami-v2"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if constants.HF_HUB_OFFLINE:
        return HubStatus(offline="HF_HUB_OFFLINE is set; unset it to download models")
    try:
        response = httpx.get(url, headers=headers, timeout=STATUS_TIMEOUT, follow_redirects=True)
    except httpx.HTTPError as error:
        return HubStatus(offline=f"cannot be reached ({type(error).__name__}); check the connection")
    if response.status_code >= 500:
        return HubStatus(offline=f"returned status {response.status_code}; try again later")
    if token and response.status_code in (401, 403):
        return HubStatus(auth_error="is invalid; create a new one at https://huggingface.co/settings/tokens")
    if token and response.is_success:
        return HubStatus(user=str(response.json().get("name", "")))
    return HubStatus()
