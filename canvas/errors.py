"""Errors that users can act on. Each class holds its code, HTTP status, exit code and title."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

# An absolute path of two parts or more, as in Python's and libraries' messages; not part of a URL.
_PART = r"[^/\\\s'\",;:()]+"
_ABSOLUTE_PATH = re.compile(rf"(?<![\w:/.\\])((?:[A-Za-z]:)?[/\\]{_PART})(?:[/\\]+{_PART})*[/\\]+({_PART})")


def without_paths(text: str) -> str:
    """The text with only the last part of each path of this machine."""
    return _ABSOLUTE_PATH.sub(lambda match: match[2] if os.path.exists(match[1]) else match[0], text)


class LazyMessage(str):
    """An English message that keeps its template and values, so that the page can translate it.

    A value may be a LazyMessage, too.
    """

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, /, **values: object) -> LazyMessage:
        """The template with its `{names}` filled in."""
        message = super().__new__(cls, template.format(**values))
        message.template, message.values = template, values
        return message

    def __getnewargs_ex__(self) -> tuple[tuple[str], Mapping[str, object]]:
        """Pickle the parts, for another process."""
        return (self.template,), self.values


class CanvasError(Exception):
    """Base class of the errors of this program; `str(error)` can be shown to any user.

    It has no absolute paths of this machine, which `full_text` has: for the terminal.

    `code` is for programs (API answers), `http_status` for HTTP routes, `exit_code` for the
    command line, `title` heads the message on the page.
    """

    code = "error"
    http_status = 500
    exit_code = 1
    title = "Something went wrong"

    def __str__(self) -> str:
        return without_paths(self.full_text)

    @property
    def full_text(self) -> str:
        return super().__str__()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the finished message, for another process."""
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(kind: type[CanvasError], args: tuple[Any, ...], state: dict[str, Any]) -> CanvasError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    return error


# Labels of fields in messages, where they are not the field names with spaces.
FIELD_LABELS: Mapping[str, str] = {
    "num_inference_steps": "Steps",
    "guidance_scale": "Guidance",
    "num_images": "Number of images",
    "image_format": "Image format",
    "model_key": "Model",
    "mask_image": "Mask",
    "fill_color": "Fill colour",
    "loras": "LoRAs",
}


def field_label(field: str) -> str:
    """The label of a field in messages: "Guidance" for guidance_scale, "Mask blur" for mask_blur.

    Names that are not identifiers, and those of environment variables, stay as they are.
    """
    if field in FIELD_LABELS or not field.isidentifier() or field.isupper():
        return FIELD_LABELS.get(field, field)
    return f"{field[0].upper()}{field[1:].replace('_', ' ')}"


class InvalidInput(CanvasError):
    """A value that is not allowed: "{Field} must be {allowed} (got {value})."

    `message` replaces that sentence where another one is clearer ("Prompt must not be empty.").
    """

    code = "invalid_input"
    http_status = 400
    exit_code = 2
    title = "Invalid value"

    def __init__(self, field: str, value: object, allowed: str = "", *, message: str | None = None) -> None:
        shown = value if isinstance(value, int | float) else repr(value)
        if len(str(shown)) > 80:
            shown = f"{str(shown)[:60]}… ({len(str(shown))} characters)"
        if not message:
            label = LazyMessage(field_label(field))
            message = LazyMessage("{field} must be {allowed} (got {value}).", field=label, allowed=allowed, value=shown)
        super().__init__(message)
        self.field, self.value, self.allowed = field, value, allowed


class UnknownModel(InvalidInput):
    """A model key that is not in the catalog."""

    code = "unknown_model"
    http_status = 404
    title = "Unknown model"


class NotFound(CanvasError):
    """An image, job or file that does not exist or belongs to another owner."""

    code = "not_found"
    http_status = 404
    title = "Not found"


class MissingApiKey(CanvasError):
    """No API key was sent, or an invalid one."""

    code = "invalid_api_key"
    http_status = 401
    exit_code = 5
    title = "API key required"

    def __init__(self, how: str = "send it as 'Authorization: Bearer KEY'") -> None:
        super().__init__(f"Missing or invalid API key. Create one with `python -m canvas keys create NAME` and {how}.")


class QueueFull(CanvasError):
    """An owner has as many jobs in the queue as allowed."""

    code = "queue_full"
    http_status = 429
    title = "The queue is full"


class GenerationCancelled(CanvasError):
    """The job was cancelled by its owner."""

    code = "cancelled"
    http_status = 499  # many clients would try 409 again
    exit_code = 130
    title = "Cancelled"


class ServerStopping(CanvasError):
    """The server shuts down, so that it takes no jobs and ends those that it has."""

    code = "server_stopping"
    http_status = 503
    title = "The server is shutting down"


class OutOfMemory(CanvasError):
    """Not enough memory to load a model or to compute a step; the message suggests a size that fits.

    The thread that raised it must not compute again: see `backends.base.run_in_fresh_thread`.
    """

    code = "out_of_memory"
    http_status = 507
    title = "Not enough memory"


class GenerationFailed(CanvasError):
    """The pipeline did not produce an image."""

    code = "generation_failed"
    title = "The image could not be generated"


class UnexpectedError(CanvasError):
    """An exception that no code expected; only the server's log has the details."""

    code = "unexpected"

    def __init__(self) -> None:
        super().__init__(LazyMessage("An unexpected error occurred. The server's log has the details."))


class ContentBlocked(CanvasError):
    """The prompt or the image does not pass the safety filter, or a public server forbids it."""

    code = "blocked"
    http_status = 403
    title = "Not allowed on this server"


class ConsentRequired(CanvasError):
    """Data would leave this computer and the user has not agreed yet."""

    code = "not_agreed"
    http_status = 403
    title = "Consent required"


class RemoteBackendError(CanvasError):
    """An inference provider or another Magic Canvas did not produce an image."""

    code = "elsewhere_failed"
    http_status = 502
    title = "The remote backend failed"


class StorageError(CanvasError):
    """The data folder or its database cannot be read or written."""

    code = "storage_error"
    http_status = 507
    exit_code = 4
    title = "The data folder cannot be used"


class ModelUnavailable(CanvasError):
    """A model that cannot be downloaded or loaded; subclasses say why."""

    code = "model_unavailable"
    http_status = 503
    exit_code = 3
    title = "The model is not available"


class ModelNotFound(ModelUnavailable):
    """The repository and its mirrors do not exist."""

    code = "model_gone"
    title = "Model not found"


class ModelGated(ModelUnavailable):
    """The repository requires accepted terms and a token."""

    code = "model_gated"
    title = "The model requires your consent"


class HubOffline(ModelUnavailable):
    """The Hub cannot be reached and the model is not on disk."""

    code = "hub_offline"
    title = "The Hub cannot be reached"


class DiskFull(ModelUnavailable):
    """The download does not fit on the disk."""

    code = "disk_full"
    title = "The disk is full"


class DownloadFailed(ModelUnavailable):
    """A stalled server, an incomplete or damaged file, or repeated server errors."""

    code = "download_failed"
    title = "The download failed"


class DownloadCancelled(ModelUnavailable):
    """The download was cancelled by its owner; complete files stay."""

    code = "download_cancelled"
    title = "Download cancelled"


class ModelUnsupported(ModelUnavailable):
    """The model is of an architecture that this program does not run."""

    code = "model_unsupported"
    http_status = 422
    title = "The model cannot be used"


class ModelCorrupted(ModelUnavailable):
    """The files on disk do not make a pipeline."""

    code = "model_broken"
    title = "The model's files are damaged"


def error_classes() -> dict[str, type[CanvasError]]:
    """Every error class by its code."""
    found: dict[str, type[CanvasError]] = {}
    waiting: list[type[CanvasError]] = [CanvasError]
    while waiting:
        kind = waiting.pop()
        found.setdefault(kind.code, kind)
        waiting += kind.__subclasses__()
    return found


def error_from_code(code: str, message: str) -> CanvasError:
    """The error that another program reports by its code."""
    kinds = {**error_classes(), "model_not_found": UnknownModel}
    return _rebuild(kinds.get(code, CanvasError), (message,), {})


def unexpected_error(error: Exception) -> GenerationFailed:
    """Wrap an exception that no code expected, so that it can be shown."""
    template = "Unexpected error: {kind}: {reason}"
    return GenerationFailed(LazyMessage(template, kind=type(error).__name__, reason=error))
