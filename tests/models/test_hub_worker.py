"""Events, errors and retries of the child process for the Hub."""

from __future__ import annotations

import errno
import io
import json
from typing import Any

import httpx2
import pytest
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from canvas.models import hub_worker
from canvas.models.hub_worker import ChecksumMismatch, EventWriter, ResumedMismatch, error_event, with_retries


def response(status: int) -> httpx2.Response:
    return httpx2.Response(status, request=httpx2.Request("GET", "http://hub/x"))


def events(output: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (GatedRepoError("x", response=response(403)), "gated"),
        (RepositoryNotFoundError("x", response=response(401)), "gone"),
        (httpx2.ReadTimeout("x"), "timeout"),
        (httpx2.ConnectError("x"), "offline"),
        (httpx2.ReadError("x"), "broken"),
        (OSError("Consistency check failed: x"), "short"),
        (OSError(errno.EACCES, "denied"), "disk"),
        (FileNotFoundError("x"), "disk"),
        (ResumedMismatch("x"), "damaged"),
    ],
)
def test_errors_have_a_kind(error: BaseException, kind: str) -> None:
    event = error_event(error)
    assert (event["error"], event["status"]) == (kind, None)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "bad_token"), (403, "gated"), (404, "gone"), (429, "too_many"), (500, "server")]
)
def test_errors_of_the_server_have_their_status(status: int, kind: str) -> None:
    event = error_event(HfHubHTTPError("first\nlast", response=response(status)))
    assert event == {"error": kind, "detail": "last", "status": status}


def test_an_error_without_a_text_is_named_by_its_class() -> None:
    assert error_event(httpx2.ReadError(""))["detail"] == "ReadError"


@pytest.mark.parametrize(
    ("action", "error", "failures", "expected"),
    [
        ("fetch", httpx2.ReadError("x"), 3, "ok"),
        ("fetch", httpx2.ReadError("x"), 4, "broken"),
        ("fetch", ResumedMismatch("x"), 1, "ok"),
        ("fetch", ChecksumMismatch("x"), 1, "damaged"),
        ("fetch", httpx2.ConnectError("x"), 1, "ok"),
        ("list", httpx2.ConnectError("x"), 1, "offline"),
        ("search", OSError(errno.EACCES, "x"), 1, "disk"),
    ],
)
def test_temporary_failures_are_retried(
    action: str, error: BaseException, failures: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(hub_worker.time, "sleep", waits.append)
    output, attempts = io.StringIO(), []

    def fail(task: dict[str, Any], writer: EventWriter) -> dict[str, Any]:
        attempts.append(task)
        if len(attempts) <= failures:
            raise error
        return {"error": "ok"}

    event = with_retries(fail, {"action": action}, EventWriter(output))
    assert event["error"] == expected
    assert waits == list(hub_worker.BACKOFF[: len(attempts) - 1])
    assert [sent["warning"] for sent in events(output)] == ["x"] * len(waits)
    assert len(attempts) == (failures + 1 if expected == "ok" else failures)


def test_an_unknown_error_is_not_retried() -> None:
    def fail(task: dict[str, Any], writer: EventWriter) -> dict[str, Any]:
        raise ValueError("unknown")

    with pytest.raises(ValueError, match="unknown"):
        with_retries(fail, {"action": "fetch"}, EventWriter(io.StringIO()))


def test_bytes_are_those_received_or_written_and_cached() -> None:
    output = io.StringIO()
    writer = EventWriter(output)
    writer.start(10)
    received, written = (
        writer.tqdm_class()(unit="B", desc=text) for text in ("Downloading (incomplete total...)", "Reconstructing")
    )
    files = writer.tqdm_class()(unit="it", desc="Fetching 3 files")
    for bar, count in ((received, 7), (written, 5), (files, 100), (received, None), (written, 0)):
        bar.update(count)
    writer.report()
    written.update(4)
    writer.report()
    writer.start(20)
    assert [event["bytes"] for event in events(output)] == [10, 17, 19, 20]
