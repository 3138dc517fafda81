"""How the page listens: private events whose errors are shown as sentences."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from canvas import errors
from canvas.errors import NotFound, Said
from canvas.request import LOCAL_OWNER
from canvas.ui.i18n import gettext, sentence_of


def current_owner(request: gr.Request) -> str:
    """The owner that the identity middleware wrote on the request; `local` without one.

    Raises NotFound for a request that has not logged in: to the studio, no owner means all.
    """
    owner = getattr(getattr(request, "state", None), "owner", LOCAL_OWNER)
    if owner is None:
        raise NotFound(Said("Log in to see your pictures."))
    return owner


TITLES: dict[type[errors.CanvasError], str] = {
    errors.InvalidInput: "This value cannot be used",
    errors.UnknownModel: "Unknown model",
    errors.NotFound: "Not found",
    errors.QueueFull: "The queue is full",
    errors.Blocked: "Not allowed here",
    errors.NotAgreed: "Agree first",
    errors.ElsewhereFailed: "No picture from elsewhere",
    errors.OutOfMemory: "Not enough memory",
    errors.GenerationFailed: "The picture could not be made",
    errors.StorageError: "The data folder cannot be used",
    errors.ModelGone: "The model is gone",
    errors.ModelGated: "The model asks for your consent",
    errors.HubOffline: "The Hub cannot be reached",
    errors.DiskFull: "The disk is full",
    errors.DownloadFailed: "The download broke",
    errors.ModelBroken: "The model's files are damaged",
}


def title_of(error: errors.CanvasError) -> str:
    """A few words that name the kind of an error, in the visitor's language."""
    for kind in type(error).__mro__:
        if kind in TITLES:
            return gettext(TITLES[kind])
    return gettext("This did not work")


def in_words(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same callback, its CanvasErrors shown as a message with a title and a sentence."""

    @functools.wraps(call)
    def told(*args: Any, **named: Any) -> Any:
        try:
            return call(*args, **named)
        except errors.CanvasError as error:
            words = message(title_of(error), sentence_of(error))
            raise gr.Error(words, print_exception=False) from error

    return told


def message(title: str, sentence: str) -> str:
    """What a message of Gradio's holds, as HTML: its own title is only the kind, in English."""
    return f"<strong>{html.escape(title)}</strong><br>{html.escape(sentence)}"


def listen(
    triggers: Any | Sequence[Any],
    call: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    **options: Any,
) -> Any:
    """`gr.on` for events of the page: not part of the API, without spinners, not limited."""
    return gr.on(
        triggers,
        None if call is None else in_words(call),
        inputs,
        outputs,
        **{
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
            **options,
        },
    )
