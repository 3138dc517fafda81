"""A part of the page that is drawn from a template; clicks come back as named actions."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import gradio as gr
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from canvas import formatting
from canvas.catalog import ASSETS
from canvas.request import GeneratedImage
from canvas.ui.i18n import gettext, ngettext


def panel(elem_id: str) -> gr.HTML:
    """HTML whose elements with a `data-action` trigger `click` with all their data attributes.

    Its value is finished HTML from `render`. Gradio's own templates (`html_template`) are
    not for texts of users: they are evaluated as JavaScript, `${…}` in a prompt included.
    """
    script = (ASSETS / "panel.js").read_text(encoding="utf-8")
    return gr.HTML("", js_on_load=script, apply_default_css=False, elem_id=elem_id)


def render(template: str, **values: Any) -> str:
    """A template of `assets/templates` filled in; every value is escaped."""
    return _environment().get_template(template).render(values)


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
    environment.filters["bytes"] = formatting.format_bytes
    environment.filters["duration"] = formatting.format_duration
    environment.filters["picture"] = image_url
    environment.filters["thumbnail"] = thumbnail_url
    return environment


def image_url(image: GeneratedImage) -> str:
    """Where the page finds a picture: beside itself, so that a path before it does not matter."""
    return f"pictures/{image.filename}"


def thumbnail_url(image: GeneratedImage) -> str:
    """Where the page finds the small version of a picture."""
    return f"thumbnails/{image.filename}"
