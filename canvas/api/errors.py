"""Says failures in the words of each family of clients: an HTTP status and a body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from canvas import errors

if TYPE_CHECKING:
    from starlette.responses import Response

# The first class that fits counts, so subclasses stand before their bases.
STATUSES: tuple[tuple[type[errors.CanvasError], int], ...] = (
    (errors.UnknownModel, 404),
    (errors.InvalidInput, 400),
    (errors.NotFound, 404),
    (errors.QueueFull, 429),
    (errors.GenerationCancelled, 409),
    (errors.ModelUnavailable, 503),
    (errors.OutOfMemory, 507),
    (errors.StorageError, 507),
)


def status_of(error: errors.CanvasError) -> int:
    """The HTTP status that fits; 500 for what is nobody's fault but ours."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


def error_response(error: errors.CanvasError) -> Response:
    """The answer of our own routes: the code for programs, the sentence for people."""
    body = {"error": {"code": error.code, "message": str(error)}}
    return JSONResponse(body, status_of(error))
