"""What can go wrong, in sentences that may be shown to a user and say what to do next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Said(str):
    """A sentence in English that knows what it was made of, so that the page can translate it.

    A value may be such a sentence, too.
    """

    template: str
    values: Mapping[str, object]

    def __new__(cls, template: str, /, **values: object) -> Said:
        """The template with its `{names}` filled in."""
        said = super().__new__(cls, template.format(**values))
        said.template, said.values = template, values
        return said

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for another process with its parts."""
        return _said, (self.template, self.values)


def _said(template: str, values: Mapping[str, object]) -> Said:
    return Said(template, **values)


class CanvasError(Exception):
    """Any failure that the program foresees; `str(error)` is fit for the user's eyes."""

    code = "error"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for another process with its finished sentence."""
        return _again, (type(self), self.args, self.__dict__)


def _again(kind: type[CanvasError], args: tuple[Any, ...], facts: dict[str, Any]) -> CanvasError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class InvalidInput(CanvasError):
    """A value that cannot be taken: names the field, the value and what is allowed."""

    code = "invalid_input"

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        if len(shown) > 80:
            shown = f"{shown[:60]}… ({len(shown)} characters)"
        end = "" if allowed.endswith(".") else "."
        super().__init__(
            Said(
                "{field}: {value} cannot be used; allowed is {allowed}{end}",
                field=field,
                value=shown,
                allowed=allowed,
                end=end,
            )
        )
        self.field = field
        self.value = value
        self.allowed = allowed


class UnknownModel(InvalidInput):
    """A model key that the catalogue does not hold."""

    code = "unknown_model"


class NotFound(CanvasError):
    """No such picture or job, or none that this owner may see."""

    code = "not_found"


class NotAllowed(CanvasError):
    """A key is missing, or is none of ours."""

    code = "invalid_api_key"

    def __init__(
        self,
        how: str = "send it as 'Authorization: Bearer KEY'",
    ) -> None:
        super().__init__(
            "A key is needed, and none that counts came along: make one with "
            f"`python -m canvas keys make NAME` and {how}."
        )


class QueueFull(CanvasError):
    """A visitor has as many jobs waiting as allowed."""

    code = "queue_full"


class GenerationCancelled(CanvasError):
    """The job was stopped by its owner."""

    code = "cancelled"


class OutOfMemory(CanvasError):
    """A load or a step that does not fit into memory; names the smallest change that would fit.

    The thread that met it must not compute again: oneDNN's code generator remembers an
    allocation that failed for as long as the thread lives, and refuses whatever is new.
    """

    code = "out_of_memory"


class GenerationFailed(CanvasError):
    """The pipeline could not make this picture."""

    code = "generation_failed"


class Blocked(CanvasError):
    """The safety setting of this place does not allow the prompt or the picture."""

    code = "blocked"


class NotAgreed(CanvasError):
    """Something would leave this computer and the user has not agreed yet; says what and where."""

    code = "not_agreed"


class ElsewhereFailed(CanvasError):
    """An inference provider or another Magic Canvas made no picture; says why."""

    code = "elsewhere_failed"


class StorageError(CanvasError):
    """The data folder or its database cannot be read or written."""

    code = "storage_error"


class ModelUnavailable(CanvasError):
    """A model that cannot be had; the subclasses say why."""

    code = "model_unavailable"


class ModelGone(ModelUnavailable):
    """The repository and all its mirrors are gone, or never were."""

    code = "model_gone"


class ModelGated(ModelUnavailable):
    """The repository asks for accepted terms and a token."""

    code = "model_gated"


class HubOffline(ModelUnavailable):
    """The Hub cannot be reached and the model is not on disk."""

    code = "hub_offline"


class DiskFull(ModelUnavailable):
    """The download does not fit on the disk."""

    code = "disk_full"


class DownloadFailed(ModelUnavailable):
    """The download broke: a stalled server, a short or damaged file, repeated server errors."""

    code = "download_failed"


class DownloadCancelled(ModelUnavailable):
    """The download was stopped by its owner; finished files stay."""

    code = "download_cancelled"


class ModelBroken(ModelUnavailable):
    """Files are there but do not make a pipeline."""

    code = "model_broken"


def in_words(code: str, sentence: str) -> CanvasError:
    """The error that another program has put into words: its kind by its code."""
    kinds = {
        kind.code: kind
        for kind in globals().values()
        if isinstance(kind, type) and issubclass(kind, CanvasError)
    } | {"model_not_found": UnknownModel}
    return _again(kinds.get(code, CanvasError), (sentence,), {})


def unforeseen(error: Exception) -> GenerationFailed:
    """What to say of a failure that nobody foresaw."""
    text = "Something unforeseen went wrong: {kind}: {reason}"
    return GenerationFailed(Said(text, kind=type(error).__name__, reason=error))
