from __future__ import annotations

import json

import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from canvas.server.routes import ErrorMiddleware
from tests.server.asgi import call, http_scope, status_of

PROMPT = "a prompt of a visitor"


def answer_to(error: Exception, path: str = "/pictures/x", *, started: bool = False, **options: bool) -> list[Message]:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        if started:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    return call(ErrorMiddleware(fail, **{"log_values": False, **options}), http_scope(path))


@pytest.mark.parametrize("error", [RuntimeError(PROMPT), KeyError(PROMPT)])
def test_an_unexpected_error_is_answered_without_its_message(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sent = answer_to(error)
    assert status_of(sent) == 500
    body = json.loads(sent[-1]["body"])
    assert body["detail"] == body["error"]
    assert PROMPT not in body["error"] + caplog.text
    [record] = caplog.records
    assert "POST /pictures/x" in record.getMessage()


def test_the_log_of_an_own_server_has_the_message(caplog: pytest.LogCaptureFixture) -> None:
    answer_to(RuntimeError(PROMPT), log_values=True)
    assert PROMPT in caplog.text


@pytest.mark.parametrize("path", ["/gradio_api/call/x", "/gradio_api/run/x", "/gradio_api/queue/join"])
@pytest.mark.parametrize("error", [KeyError("x"), TypeError("x"), ValueError("x")])
def test_an_invalid_call_is_an_error_of_the_client(
    path: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sent = answer_to(error, path)
    assert status_of(sent) == 400
    assert "/gradio_api/info" in json.loads(sent[-1]["body"])["error"]
    assert not caplog.records


def test_other_errors_of_a_call_are_unexpected(caplog: pytest.LogCaptureFixture) -> None:
    assert status_of(answer_to(RuntimeError("x"), "/gradio_api/call/x")) == 500
    assert caplog.records


def test_a_response_that_has_started_is_left_incomplete(caplog: pytest.LogCaptureFixture) -> None:
    assert [message["type"] for message in answer_to(RuntimeError("x"), started=True)] == ["http.response.start"]
    assert caplog.records


def unknown_event() -> Exception:
    """What Gradio raises after it has sent that there is no such event."""
    error = RuntimeError("x")
    error.__cause__ = HTTPException(404)
    return error


def test_a_stream_of_an_unknown_event_ends_without_a_log(caplog: pytest.LogCaptureFixture) -> None:
    start, end = answer_to(unknown_event(), started=True)
    assert start["type"] == "http.response.start"
    assert end == {"type": "http.response.body"}
    assert not caplog.records


def test_such_an_error_before_the_response_is_unexpected() -> None:
    assert status_of(answer_to(unknown_event())) == 500


def test_errors_of_other_connections_pass() -> None:
    reached = []

    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])
        raise RuntimeError("at the start")

    with pytest.raises(RuntimeError, match="at the start"):
        call(ErrorMiddleware(fail, log_values=False), {"type": "lifespan"})

    async def work(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    call(ErrorMiddleware(work, log_values=False), {"type": "lifespan"})
    assert reached == ["lifespan"] * 2
