"""How the page listens: private events whose errors are shown as sentences."""

from __future__ import annotations

import functools
import html
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from canvas import errors
from canvas.errors import LazyMessage, NotFound
from canvas.request import LOCAL_OWNER
from canvas.ui.i18n import error_text, gettext


def current_owner(request: gr.Request) -> str:
    """The owner that the identity middleware wrote on the request; `local` without one.

    Raises NotFound for a request that has not logged in: to the studio, no owner means all.
    """
    owner = getattr(getattr(request, "state", None), "owner", LOCAL_OWNER)
    if owner is None:
        raise NotFound(LazyMessage("Log in to see your pictures."))
    return owner


def error_title(error: errors.CanvasError) -> str:
    """A few words that name the kind of an error, in the visitor's language."""
    return gettext(error.title)


def show_errors(call: Callable[..., Any]) -> Callable[..., Any]:
    """The same callback, its CanvasErrors shown as a message with a title and a sentence."""

    @functools.wraps(call)
    def told(*args: Any, **named: Any) -> Any:
        try:
            return call(*args, **named)
        except errors.CanvasError as error:
            words = toast_html(error_title(error), error_text(error))
            raise gr.Error(words, print_exception=False) from error

    return told


def toast_html(title: str, sentence: str) -> str:
    """What a message of Gradio's holds, as HTML: its own title is only the kind, in English."""
    return f"<strong>{html.escape(title)}</strong><br>{html.escape(sentence)}"


def bind(
    triggers: Any | Sequence[Any],
    call: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    **options: Any,
) -> Any:
    """`gr.on` for events of the page: not part of the API, without spinners, not limited."""
    return gr.on(
        triggers,
        None if call is None else show_errors(call),
        inputs,
        outputs,
        **{
            "api_visibility": "private",
            "show_progress": "hidden",
            "concurrency_limit": None,
            **options,
        },
    )
