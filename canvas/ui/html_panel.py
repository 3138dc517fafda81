"""HTML components rendered from templates; their clicks arrive as named actions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from canvas.catalog import ASSETS
from canvas.errors import CanvasError
from canvas.request import GeneratedImage
from canvas.ui.i18n import error_text, format_bytes, format_duration, gettext, localize, ngettext, translate_message


def panel(elem_id: str) -> gr.HTML:
    """HTML whose elements with a `data-action` trigger `click` with all their data attributes.

    Its value is HTML from `render`. Gradio's own templates (`html_template`) are unsafe for text
    of users: they are evaluated as JavaScript, including `${…}` in a prompt.
    """
    script = "magicCanvas.bindPanel(element, trigger, watch)"  # of assets/panel.js
    return gr.HTML("", js_on_load=script, apply_default_css=False, elem_id=elem_id)


def render(template: str, **values: Any) -> str:
    """Render a template of `assets/templates`; every value is escaped."""
    return _environment().get_template(template).render(values)


def text_line(text: str, kind: str = "") -> str:
    """One paragraph of text; `kind` is an additional CSS class."""
    return render("text_line.html", text=text, kind=kind)


def error_line(error: CanvasError) -> str:
    """The message of an error as one paragraph."""
    return text_line(error_text(error), "error")


@lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(ASSETS / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"_": gettext, "ngettext": ngettext}
    environment.filters |= {"bytes": format_bytes, "duration": format_duration, "localize": localize}
    environment.filters |= {"message": translate_message, "image_url": image_url, "thumbnail_url": thumbnail_url}
    return environment


def image_url(image: GeneratedImage) -> str:
    """The URL of an image, relative to the page so that a path prefix does not matter."""
    return f"pictures/{image.filename}"


def thumbnail_url(image: GeneratedImage) -> str:
    """The URL of an image's thumbnail."""
    return f"thumbnails/{image.filename}"
