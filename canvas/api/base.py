"""Follows a job from the server's event loop, and stops it when its client is gone."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any

from anyio.to_thread import run_sync
from starlette.responses import JSONResponse

from canvas.errors import MissingApiKey

if TYPE_CHECKING:
    from canvas.studio import Studio

import io
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image, ImageChops
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from canvas import errors
from canvas.errors import CanvasError, InvalidInput
from canvas.jobs.job import Job

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message

    from canvas.jobs.job import Job
    from canvas.request import GeneratedImage, GenerationRequest
    from canvas.studio import Studio

MAX_BODY = 20 * 2**20  # bytes: a picture and its mask in base64 with room to spare


class BodyTooLarge(CanvasError):
    """More bytes than any request of this family needs."""

    code = "body_too_large"
    http_status = 413

    def __init__(self) -> None:
        super().__init__(f"The body is too large; allowed are {MAX_BODY // 2**20} MiB.")


def error_response(error: errors.CanvasError) -> Response:
    """The answer of our own routes: the code for programs, the sentence for people."""
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, error.http_status)


BAD_REQUEST = 400


class ApiRoute(APIRoute):
    """A route whose failures are answered by `error_response_for`, which a family replaces by its own."""

    error_response_for: Callable[[CanvasError], Response] = staticmethod(error_response)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap FastAPI's handler, which would answer all families alike."""
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(_limit_body(request))
            except CanvasError as error:
                return type(self).error_response_for(error)
            except HTTPException as error:
                if error.status_code != BAD_REQUEST:
                    raise
                # What was raised while the body was read is the cause.
                cause = error.__cause__
                return type(self).error_response_for(
                    cause if isinstance(cause, CanvasError) else not_json()
                )
            except RequestValidationError as error:
                return type(self).error_response_for(invalid_body(error))

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


def _limit_body(request: Request) -> Request:
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


ALLOWED = "a picture file (PNG, JPEG or WebP)"


def decode_base64(text: str, field: str) -> bytes:
    """The bytes of base64, with or without a `data:` prefix; raises InvalidInput."""
    try:
        return base64.b64decode(text.partition("base64,")[2] or text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput(field, text, f"{ALLOWED} in base64") from error


async def upload_image(studio: Studio, source: bytes | Path | Image.Image, field: str) -> str:
    """Keep a picture; its name is what a request's `image` or `mask_image` takes."""
    picture = await run_sync(studio.inputs.upload, source, field)
    return picture.name


async def submit(studio: Studio, request: GenerationRequest, owner: str, channel: str) -> Job:
    """`studio.submit` for requests with pictures, which takes too long for the event loop."""
    return await run_sync(studio.submit, request, owner, channel)


def mask_from_alpha(content: bytes) -> Image.Image:
    """White where a picture is transparent: how OpenAI's clients mark what is to be redrawn."""
    try:
        with Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as picture:
            alpha = picture.convert("RGBA").getchannel("A")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput("mask", f"{len(content)} bytes", "a PNG with transparency") from error
    return ImageChops.invert(alpha)


POLL_INTERVAL = 0.05  # seconds: looking is cheaper than a waiting thread for each client
HEARTBEAT = 1.0  # seconds: how long a client that hung up may go unnoticed


async def stream_job(job: Job) -> AsyncGenerator[Job, None]:
    """Yield the job after every change and at least once a second, until it is finished.

    Leaving early, for whatever reason, cancels it: it was asked for by this caller only.
    Use it with `aclosing`, so that leaving is noticed at once.
    """
    seen, last = -1, time.monotonic()
    try:
        while not job.finished:
            if job.version != seen or time.monotonic() - last > HEARTBEAT:
                seen, last = job.version, time.monotonic()
                yield job
            await anyio.sleep(POLL_INTERVAL)
        yield job
    finally:
        if not job.finished:
            job.cancel()


async def wait_for_job(job: Job, request: Request) -> list[GeneratedImage]:
    """Wait for the pictures of a plain request; a client that hangs up cancels them.

    Raises why there are none.
    """
    async with aclosing(stream_job(job)) as changes:
        async for _ in changes:
            if not job.finished and await request.is_disconnected():
                break
    if job.error:
        raise job.error
    return job.images


def require_owner(request: Any) -> str:
    """Whose pictures a program asks for; raises NotAllowed without a key where one is needed."""
    owner: str | None = getattr(request.state, "owner", None)
    if owner is None or not getattr(request.state, "may_program", False):
        raise MissingApiKey
    return owner
