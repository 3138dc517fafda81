"""Says failures in the words of each family of clients: an HTTP status and a body."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.responses import JSONResponse

from canvas import errors
from canvas.errors import CanvasError

if TYPE_CHECKING:
    from starlette.responses import Response

MAX_BODY = 20 * 2**20  # bytes: a picture and its mask in base64 with room to spare


class BodyTooLarge(CanvasError):
    """More bytes than any request of this family needs."""

    code = "body_too_large"

    def __init__(self) -> None:
        super().__init__(f"The body is too large; allowed are {MAX_BODY // 2**20} MiB.")


# The first class that fits counts, so subclasses stand before their bases.
STATUSES: tuple[tuple[type[errors.CanvasError], int], ...] = (
    (errors.NotAllowed, 401),
    (BodyTooLarge, 413),
    (errors.UnknownModel, 404),
    (errors.InvalidInput, 400),
    (errors.NotFound, 404),
    (errors.QueueFull, 429),
    (errors.Blocked, 403),
    (errors.NotAgreed, 403),
    (errors.ElsewhereFailed, 502),
    (errors.GenerationCancelled, 499),  # 409 would be tried again by many clients
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
