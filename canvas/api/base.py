"""Shared by the HTTP APIs: access, uploads, waiting for jobs, and errors as responses."""

from __future__ import annotations

import io
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import RunVar
from anyio.to_thread import run_sync
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Message

from canvas.errors import CanvasError, GenerationCancelled, InvalidInput, MissingApiKey, field_label
from canvas.image_formats import decode_base64, encode_base64
from canvas.jobs.job import Job
from canvas.request import GeneratedImage
from canvas.studio import Studio

MAX_BODY = 20 * 2**20  # bytes: an image and its mask in base64, with room to spare
MAX_NAME = 255  # characters of the name of a stored image; a file in base64 is longer
POLL_INTERVAL = 0.05  # seconds; polling is cheaper than one waiting thread per client
DATABASE_THREADS = 8  # SQLite has a single writer
HEARTBEAT = 1.0  # seconds within which a disconnected client is noticed

Result = TypeVar("Result")
_database_limiter: RunVar[anyio.CapacityLimiter] = RunVar("database_limiter")  # of each event loop


class BodyTooLarge(CanvasError):
    """A request body of more than MAX_BODY bytes."""

    code = "body_too_large"
    http_status = 413

    def __init__(self) -> None:
        super().__init__(f"The request body must be at most {MAX_BODY // 2**20} MiB.")


def error_response(error: CanvasError) -> Response:
    """The error format of our own routes."""
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, error.http_status)


class ApiRoute(APIRoute):
    """Limits the body to MAX_BODY and turns errors into `error_response_for(error)`.

    Each API overrides that method with its own format.
    """

    error_response_for: Callable[[CanvasError], Response] = staticmethod(error_response)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, with our errors instead of FastAPI's."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            try:
                return await handler(_limit_body(request))
            except CanvasError as error:
                return type(self).error_response_for(error)
            except ClientDisconnect:  # while it sent the body; nobody reads the answer
                return type(self).error_response_for(GenerationCancelled("The client disconnected."))
            except HTTPException as error:
                if error.status_code != InvalidInput.http_status:
                    raise
                # FastAPI wraps whatever is raised while it reads the body.
                cause = error.__cause__
                return type(self).error_response_for(cause if isinstance(cause, CanvasError) else _invalid_json())
            except RequestValidationError as error:
                return type(self).error_response_for(invalid_body(error))

        return handle


def invalid_body(error: RequestValidationError | ValidationError) -> InvalidInput:
    """The first validation error of a request as InvalidInput."""
    first = error.errors()[0]
    location = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid" or not location:
        return _invalid_json()
    field, message = ".".join(location), str(first["msg"])
    if first["type"] == "missing":
        return InvalidInput(field, None, message=f"{field_label(field)} is required.")
    allowed = message.removeprefix("Input should be ").partition(", unable to parse")[0]
    return InvalidInput(field, first.get("input"), allowed)


def _invalid_json() -> InvalidInput:
    message = "The request body must be a JSON object with the fields documented at /docs."
    return InvalidInput("body", None, message=message)


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


def require_owner(request: Any) -> str:
    """The owner whose jobs and images an API call may use; raises MissingApiKey."""
    owner: str | None = getattr(request.state, "owner", None)
    if owner is None or not getattr(request.state, "api_allowed", False):
        raise MissingApiKey
    return owner


async def run_database(function: Callable[..., Result], *args: Any) -> Result:
    """Call a function that writes to the database, which may be locked, in one of DATABASE_THREADS.

    The threads that all other routes share would otherwise be waiting, too.
    """
    try:
        limiter = _database_limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(DATABASE_THREADS)
        _database_limiter.set(limiter)
    return await run_sync(function, *args, limiter=limiter)


async def upload_image(studio: Studio, source: bytes | Path, field: str) -> str:
    """Store an image; returns the name that a request's `image` takes."""
    upload = await run_sync(studio.inputs.upload, source, field)
    return upload.name


async def upload_base64(studio: Studio, encoded: str, field: str) -> str:
    """The same for an image in base64."""
    return await upload_image(studio, await run_sync(decode_base64, encoded, field), field)


async def upload_mask(studio: Studio, source: bytes | Path, field: str, **options: bool) -> str:
    """Store a mask with the options of `InputResolver.upload_mask`; returns its name."""
    upload = await run_sync(partial(studio.inputs.upload_mask, source, field, **options))
    return upload.name


async def upload_guidance(studio: Studio, items: Any, field: str) -> Any:
    """The control or reference images with the files in base64 stored, under their names; names stay."""
    if not isinstance(items, list | tuple):
        return items  # the request reports it
    stored = []
    for item in items:
        source = item.get("image") if isinstance(item, dict) else None
        if isinstance(source, str) and (len(source) > MAX_NAME or source.startswith("data:")):
            item = {**item, "image": await upload_base64(studio, source, field)}  # noqa: PLW2901
        stored.append(item)
    return stored


def read_as_base64(studio: Studio, image: GeneratedImage) -> str:
    """The stored file of an image in base64."""
    return encode_base64(studio.image_path(image.filename).read_bytes())


def image_url(http_request: Any, image: GeneratedImage) -> str:
    """The address of an image; with a login a link that is valid for an hour, for whoever shows it."""
    url = str(http_request.url_for("picture", filename=image.filename))
    sign = getattr(http_request.state, "sign_link", None)
    return f"{url}?{sign(image.filename)}" if sign else url


def encode_preview(preview: Image.Image, image_format: str, **options: Any) -> str:
    """A preview as a file of that format in base64."""
    buffer = io.BytesIO()
    preview.convert("RGB").save(buffer, image_format, **options)
    return encode_base64(buffer.getvalue())


async def stream_job(job: Job) -> AsyncGenerator[Job, None]:
    """Yield the job after every change, at least once per HEARTBEAT, until it has finished.

    Closing the generator earlier cancels the job. Iterate within `aclosing`, so that this
    happens at once.
    """
    version, yielded_at = -1, time.monotonic()
    try:
        while not job.finished:
            if job.version != version or time.monotonic() - yielded_at > HEARTBEAT:
                version, yielded_at = job.version, time.monotonic()
                yield job
            await anyio.sleep(POLL_INTERVAL)
        yield job
    finally:
        if not job.finished:
            with anyio.CancelScope(shield=True):
                await run_database(job.cancel)


async def wait_for_job(job: Job, http_request: Request) -> list[GeneratedImage]:
    """The images of a job; raises its error. A client that disconnects cancels it."""
    async with aclosing(stream_job(job)) as updates:
        async for _ in updates:
            if not job.finished and await http_request.is_disconnected():
                raise GenerationCancelled("The client disconnected.")
    if job.error:
        raise job.error
    return job.images
