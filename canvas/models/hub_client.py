"""Whether the Hub answers from here, and what it thinks of the token."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
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

PROGRAM = Path(__file__).with_name("hub_worker.py")
# Seconds that a new Python may take to import the library, on a cold and busy disk.
START_SECONDS = 120.0
Event = dict[str, Any]


@dataclass(frozen=True)
class Hub:
    """Where models come from and go to; None is what huggingface_hub takes from its environment.

    `timeout`: seconds without a sign of life after which the server counts as stalled.
    """

    endpoint: str | None = None
    cache_dir: Path | None = None
    token: str | None = None
    timeout: float = 30.0

    @property
    def cache(self) -> Path:
        """The folder of the cached repositories."""
        from huggingface_hub import constants

        return (self.cache_dir or Path(constants.HF_HUB_CACHE)).expanduser().absolute()

    def folder(self, repo_id: str) -> Path:
        """Where the cache keeps that repository."""
        return self.cache / f"models--{repo_id.replace('/', '--')}"


def call(
    hub: Hub,
    task: Event,
    *,
    on_bytes: Callable[[int], None] | None = None,
    cancelled: threading.Event | None = None,
) -> Event:
    """What the Hub answered; raises a kind of ModelUnavailable.

    The task's `do` is "list" or "fetch". `on_bytes` is called in this thread.
    """
    cancelled = cancelled or threading.Event()
    task = {
        **task,
        "endpoint": hub.endpoint,
        "cache_dir": str(hub.cache),
        "token": hub.token,
        "timeout": hub.timeout,
    }
    most = -1
    with _child_process(task) as (lines, errors):
        for event in _events(lines, hub.timeout, cancelled):
            if "error" in event:
                raise to_error(task["repo_id"], event)
            if event.get("done"):
                return event
            if on_bytes and event.get("bytes", most) != most:
                most = event["bytes"]
                on_bytes(most)
        raise DownloadFailed(_crashed(errors))


def _events(
    lines: queue.Queue[str | None], timeout: float, cancelled: threading.Event
) -> Iterator[Event]:
    """What the child says until it ends; raises when it is not wanted any more, or stalls."""
    note, give_up = "", time.monotonic() + START_SECONDS
    while True:
        if cancelled.is_set():
            raise DownloadCancelled("The download was stopped; files that are whole stay.")
        try:
            line = lines.get(timeout=0.1)
        except queue.Empty:
            if time.monotonic() > give_up:
                raise _stalled(timeout, note) from None
            continue
        if line is None:
            return
        event = json.loads(line)
        note = event.get("note", note)
        # A note is no sign of life: five retries of a dead server would go on for minutes.
        if "bytes" in event:
            give_up = time.monotonic() + timeout
        yield event


@contextmanager
def _child_process(task: Event) -> Iterator[tuple[queue.Queue[str | None], IO[bytes]]]:
    """The child at work: its lines (None at the end) and what it writes to standard error."""
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(  # noqa: S603 - our own program, started by its path
            # -P: the folder of the program must not hide packages of the same names.
            [sys.executable, "-P", str(PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
        )
        assert child.stdin and child.stdout  # noqa: S101 - both are pipes
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(child.stdout, lines), daemon=True)
        reader.start()
        try:
            with suppress(BrokenPipeError):  # a child that ended at once is told of by `lines`
                child.stdin.write(json.dumps(task) + "\n")
                child.stdin.flush()
            yield lines, errors
        finally:
            child.kill()
            child.wait()
            reader.join()
            child.stdout.close()
            with suppress(BrokenPipeError):
                child.stdin.close()


def _read(pipe: IO[str], lines: queue.Queue[str | None]) -> None:
    for line in pipe:
        lines.put(line)
    lines.put(None)


def _crashed(errors: IO[bytes]) -> str:
    errors.seek(0)
    lines = errors.read().decode("utf-8", "replace").strip().splitlines()
    return f"The download ended unexpectedly: {lines[-1] if lines else 'no reason given'}"


def _stalled(timeout: float, note: str) -> DownloadFailed:
    reason = f" ({note})" if note else ""
    return DownloadFailed(
        f"The Hub sent nothing for {timeout:.0f} seconds{reason}. "
        "Files that are whole stay; try again later."
    )


def to_error(repo_id: str, event: Event) -> CanvasError:
    """The error for a failure that the child described."""
    kind, sentence = ERROR_MESSAGES[event["error"]]
    return kind(LazyMessage(sentence, repo_id=repo_id, retry=LazyMessage(RETRY), **event))


RETRY = "Files that are whole stay; try again."


ERROR_MESSAGES: dict[str, tuple[type[CanvasError], str]] = {
    "gated": (
        ModelGated,
        "{repo_id} is open only to those who ask: accept the terms at "
        "https://huggingface.co/{repo_id} and set HF_TOKEN.",
    ),
    "bad_token": (
        ModelGated,
        "The Hub does not take the token: make a new one at "
        "https://huggingface.co/settings/tokens and set HF_TOKEN.",
    ),
    "gone": (ModelNotFound, "{repo_id} is gone from the Hub, or private."),
    "no_repo_id": (
        ModelNotFound,
        "{repo_id} is no folder or file on this machine, nor the id of a repository.",
    ),
    "no_file": (ModelCorrupted, "{repo_id} lists a file that the Hub does not have: {detail}"),
    "offline": (HubOffline, "The Hub cannot be reached; check the connection."),
    "offline_mode": (HubOffline, "HF_HUB_OFFLINE is set; unset it to download."),
    "timeout": (DownloadFailed, "The Hub did not answer in time. {retry}"),
    "broken": (DownloadFailed, "The connection broke again and again ({detail}). {retry}"),
    "short": (DownloadFailed, "A file arrived incomplete again and again. {retry}"),
    "damaged": (DownloadFailed, "A file arrived damaged and was removed ({detail}). {retry}"),
    "too_many": (
        DownloadFailed,
        "The Hub limits requests from here; set HF_TOKEN, or wait some minutes and try again.",
    ),
    "server": (DownloadFailed, "The Hub has a fault of its own (status {status}). {retry}"),
    "disk_full": (
        DiskFull,
        "The disk became full; files that are whole stay. Free some space and try again.",
    ),
    "disk": (DownloadFailed, "The cache folder cannot be used: {detail}."),
}


CHECK_TIMEOUT = 8.0  # seconds


@dataclass(frozen=True)
class HubStatus:
    """`name` is whose token it is, "" without one; `wrong` says what is wrong, else empty."""

    name: str = ""
    offline: str = ""
    wrong: str = ""


def check_hub(endpoint: str | None = None, token: str | None = None) -> HubStatus:
    """Ask the Hub once who we are; the defaults are huggingface_hub's own."""
    import httpx
    from huggingface_hub import constants, get_token

    token = token or get_token()
    address = f"{endpoint or constants.ENDPOINT}/api/whoami-v2"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if constants.HF_HUB_OFFLINE:
        return HubStatus(offline="HF_HUB_OFFLINE is set; unset it to download models")
    try:
        answer = httpx.get(address, headers=headers, timeout=CHECK_TIMEOUT, follow_redirects=True)
    except httpx.HTTPError as error:
        return HubStatus(
            offline=f"cannot be reached ({type(error).__name__}); check the connection"
        )
    if answer.status_code >= 500:
        return HubStatus(offline=f"has a fault of its own (status {answer.status_code}); try later")
    if token and answer.status_code in (401, 403):
        return HubStatus(
            wrong="is not taken; make a new one at https://huggingface.co/settings/tokens"
        )
    if token and answer.is_success:
        return HubStatus(name=str(answer.json().get("name", "")))
    return HubStatus()
