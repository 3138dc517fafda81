"""What the families of HTTP clients share: limits of a body, and errors in each one's words."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from canvas.api.errors import MAX_BODY, BodyTooLarge, error_response
from canvas.errors import CanvasError, InvalidInput

if TYPE_CHECKING:
    from starlette.responses import Response
    from starlette.types import Message


BAD_REQUEST = 400


class FamilyRoute(APIRoute):
    """A route whose failures are answered by `say`, which a family replaces by its own."""

    say: Callable[[CanvasError], Response] = staticmethod(error_response)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler, which would answer all families alike."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(_limited(request))
            except CanvasError as error:
                return type(self).say(error)
            except HTTPException as error:
                if error.status_code != BAD_REQUEST:
                    raise
                # What was raised while the body was read is the cause.
                cause = error.__cause__
                return type(self).say(cause if isinstance(cause, CanvasError) else not_json())
            except RequestValidationError as error:
                return type(self).say(invalid_body(error))

        return answer


def invalid_body(error: RequestValidationError | ValidationError) -> InvalidInput:
    """The first thing that is wrong with a body, as our own error."""
    first = error.errors()[0]
    where = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid" or not where:
        return not_json()
    return InvalidInput(".".join(where), first.get("input"), _allowed(first["msg"]))


def not_json() -> InvalidInput:
    """A body that nothing can be read from."""
    return InvalidInput("body", None, "one JSON object as the documentation at /docs says")


def _allowed(message: str) -> str:
    if message == "Field required":
        return "a value: the field is required"
    message = message.removeprefix("Input should be ").partition(", unable to parse")[0]
    return message[:1].lower() + message[1:]


def _limited(request: Request) -> Request:
    if int(request.headers.get("content-length") or 0) > MAX_BODY:
        raise BodyTooLarge
    received = 0

    async def receive() -> Message:
        nonlocal received
        message = await request.receive()
        received += len(message.get("body", b""))
        if received > MAX_BODY:
            raise BodyTooLarge
        return message

    return Request(request.scope, receive)
