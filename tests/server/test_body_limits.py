from __future__ import annotations

import json

import pytest
from starlette.formparsers import MultiPartException
from starlette.types import Receive, Scope, Send

from canvas.server.uploads import MAX_UPLOAD, BodyLimitMiddleware
from tests.server.asgi import body_of, call, http_scope, read_body, response_of, status_of

MIB = 2**20
LIMITED = [("/gradio_api/upload", 101), ("/gradio_api/mcp", 20), ("/gradio_api/queue/join", 2), ("/", 2)]


def declared(path: str, length: object) -> dict[str, str | int]:
    """Status and text of the answer to a request that says how long its body is."""
    sent = call(BodyLimitMiddleware(read_body), http_scope(path, headers={"content-length": str(length)}), body_of(b""))
    return {"status": status_of(sent), "text": sent[-1]["body"].decode()}


@pytest.mark.parametrize(("path", "limit"), LIMITED)
def test_a_body_has_the_limit_of_its_route(path: str, limit: int) -> None:
    assert declared(path, limit * MIB)["status"] == 200
    answer = declared(path, limit * MIB + 1)
    assert answer["status"] == 413
    assert json.loads(str(answer["text"])) == {"detail": f"The request body must be at most {limit} MiB."}


def test_an_upload_has_room_for_its_headers() -> None:
    assert declared("/gradio_api/upload", MAX_UPLOAD + 10_000)["status"] == 200
    assert MAX_UPLOAD == 100 * MIB


@pytest.mark.parametrize(("length", "status"), [("9" * 19, 413), ("9" * 5000, 413), ("nine", 200), ("-9", 200)])
def test_lengths_that_are_no_numbers_are_left_to_the_server(length: str, status: int) -> None:
    assert declared("/", length)["status"] == status


@pytest.mark.parametrize("path", ["/v1/images/edits", "/sdapi/v1/txt2img", "/controlnet/detect"])
def test_routes_that_limit_their_bodies_have_no_limit_here(path: str) -> None:
    assert declared(path, 500 * MIB)["status"] == 200


@pytest.mark.parametrize("media_type", ["application/json", "multipart/form-data; boundary=b", "Multipart/x"])
def test_a_body_without_a_length_is_cut_at_the_limit(media_type: str) -> None:
    scope = http_scope(headers={"content-type": media_type})
    assert status_of(call(BodyLimitMiddleware(read_body), scope, body_of(bytes(MIB), bytes(MIB)))) == 200
    sent = call(BodyLimitMiddleware(read_body), scope, body_of(bytes(MIB), bytes(MIB), b"x"))
    assert status_of(sent) == 413
    assert b"at most 2 MiB" in sent[-1]["body"]


def test_a_rejected_form_fails_in_a_way_that_removes_its_files() -> None:
    raised: list[Exception] = []

    async def parse(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await receive()
        except Exception as error:
            raised.append(error)
            raise

    for media_type in ("multipart/form-data", "application/json"):
        call(BodyLimitMiddleware(parse), http_scope(headers={"content-type": media_type}), body_of(bytes(3 * MIB)))
    assert [isinstance(error, MultiPartException) for error in raised] == [True, False]


def test_an_app_that_ignores_the_rejection_does_not_answer() -> None:
    async def careless(scope: Scope, receive: Receive, send: Send) -> None:
        for _ in range(2):  # it asks again
            with pytest.raises(Exception, match="413"):
                await receive()
        await response_of(b"done")(scope, receive, send)

    sent = call(BodyLimitMiddleware(careless), http_scope(), body_of(bytes(3 * MIB), b""))
    assert status_of(sent) == 413
    assert b"done" not in [message.get("body") for message in sent]


def test_a_response_that_has_started_gets_no_second_one() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()

    assert status_of(call(BodyLimitMiddleware(app), http_scope(), body_of(bytes(3 * MIB)))) == 200


def test_errors_of_the_app_pass() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError("a fault of the app")

    with pytest.raises(LookupError, match="a fault of the app"):
        call(BodyLimitMiddleware(fail), http_scope())


def test_other_connections_are_passed_on_once() -> None:
    reached = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        reached.append(scope["type"])

    call(BodyLimitMiddleware(app), {"type": "lifespan"})
    assert reached == ["lifespan"]
