"""Answers unexpected errors of all routes without their message, and logs them."""

from __future__ import annotations

import logging

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from canvas.errors import UnexpectedError
from canvas.formatting import format_traceback

log = logging.getLogger(__name__)

# Gradio looks up the function of an event, and its parameters by name, without catching errors.
EVENT_PREFIXES = tuple(f"/gradio_api/{name}" for name in ("queue/join", "call/", "run/", "api/", "upload"))
INVALID_CALL = "The call names no function of this app, or wrong parameters. /gradio_api/info lists them."


class ErrorMiddleware:
    """Replaces an exception by a response, before uvicorn logs it with everything in its message.

    With `log_values` the log has the messages of the exceptions, which may contain prompts.
    """

    def __init__(self, app: ASGIApp, *, log_values: bool) -> None:
        self._app = app
        self._log_values = log_values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def send_noting_start(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, send_noting_start)
        except Exception as error:  # noqa: BLE001 - of any route, which is logged
            path = scope["path"]
            is_call = path.startswith(EVENT_PREFIXES) and _is_invalid_call(error)
            if started and isinstance(error.__cause__, HTTPException):
                # Gradio's event streams send that there is no such event or session, and raise it as well.
                await send({"type": "http.response.body"})
                return
            if not is_call:
                log.error("%s %s: %s", scope["method"], path[:100], self._traceback(error))
            if started:
                return  # the client sees that the response is incomplete
            text, status = (INVALID_CALL, 400) if is_call else (str(UnexpectedError()), 500)
            await JSONResponse({"detail": text, "error": text}, status)(scope, receive, send)

    def _traceback(self, error: Exception) -> str:
        return format_traceback(error, with_message=self._log_values)


def _is_invalid_call(error: Exception) -> bool:
    from gradio.route_utils import FnIndexInferError

    return isinstance(error, KeyError | TypeError | ValueError | FnIndexInferError)
