"""Binds callbacks to events of the page and shows their errors as translated messages."""

from __future__ import annotations

import functools
import html
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import gradio as gr

from canvas.errors import CanvasError, LazyMessage, NotFound
from canvas.request import LOCAL_OWNER
from canvas.ui.i18n import error_text, gettext

EVERY_CLICK: Mapping[str, str] = MappingProxyType({"trigger_mode": "multiple"})  # also while one is being answered
DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
)


def current_owner(http_request: gr.Request) -> str:
    """The owner that the identity middleware stored on the request; `local` without one.

    Raises NotFound for a request that has not logged in: for `Studio`, no owner means all owners.
    """
    owner = getattr(getattr(http_request, "state", None), "owner", LOCAL_OWNER)
    if owner is None:
        raise NotFound(LazyMessage("Log in to see your images."))
    return owner


def show_errors(callback: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a callback so that a CanvasError is shown as a message with a title."""

    @functools.wraps(callback)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return callback(*args, **kwargs)
        except CanvasError as error:
            raise gr.Error(error_toast(error), print_exception=False) from error

    return wrapper


def error_toast(error: CanvasError) -> str:
    """The content of the toast of an error."""
    return toast_html(gettext(error.title), error_text(error))


def toast_html(title: str, text: str) -> str:
    """The content of a toast. Gradio's own title, the kind in English, is hidden by the CSS."""
    return f"<strong>{html.escape(title)}</strong><br>{html.escape(text)}"


def bind(
    triggers: Any | Sequence[Any],
    callback: Callable[..., Any] | None,
    inputs: Any = None,
    outputs: Any = None,
    **options: Any,
) -> Any:
    """`gr.on` for events of the page: not in the API, no spinner, no concurrency limit.

    Errors of a generator are not shown; it uses `show_errors` itself.
    """
    return gr.on(triggers, _with_errors(callback), inputs, outputs, **{**DEFAULTS, **options})


def bind_next(event: Any, callback: Callable[..., Any], inputs: Any, outputs: Any, **options: Any) -> Any:
    """`bind` for a callback that runs after an event."""
    return event.then(_with_errors(callback), inputs, outputs, **{**DEFAULTS, **options})


def bind_select_model(panel: gr.HTML, select_model: Callable[[str], dict[Any, Any]], outputs: set[Any]) -> None:
    """Select the model of a panel's button `select_model`; the callback returns updates of `outputs`."""

    def on_click(event: gr.EventData) -> dict[Any, Any]:
        return select_model(str(event.model)) if event.action == "select_model" else {}

    bind(panel.click, on_click, None, outputs)


def _with_errors(callback: Callable[..., Any] | None) -> Callable[..., Any] | None:
    if callback is None or inspect.isgeneratorfunction(callback):
        return callback
    return show_errors(callback)


def run_while_selected(timer: gr.Timer, tab: gr.Tab, all_tabs: Sequence[gr.Tab]) -> None:
    """Run a timer only while its tab is selected."""
    bind(tab.select, lambda: gr.Timer(active=True), None, timer)
    bind([other.select for other in all_tabs if other is not tab], lambda: gr.Timer(active=False), None, timer)
