"""Translations of the page: one JSON table per language, with the English texts as keys.

Gradio's i18n translates the texts of the built page in the browser; `gettext` translates what a
callback renders, in the same language. A text without a translation stays English.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import gradio as gr
from gradio.context import LocalContext  # private: see tests/ui/test_gradio_private_names.py

from canvas.catalog import ASSETS
from canvas.errors import CanvasError, LazyMessage, without_paths

ENGLISH = "en"
LANGUAGES = ("de", "es", "fr", "ja", "zh-CN")  # Gradio's names
TEXT_ATTRIBUTES = ("label", "info", "placeholder")  # attributes of components that hold texts
SINGULAR_ZERO = ("fr",)  # languages that say "0 image"


@lru_cache(maxsize=len(LANGUAGES) + 1)
def catalog(language: str) -> Mapping[str, str]:
    """The translations of a language by English text; empty for English."""
    if language == ENGLISH:
        return {}
    return json.loads((ASSETS / "languages" / f"{language}.json").read_text(encoding="utf-8"))


def language() -> str:
    """The language of the visitor whose callback runs, English outside of callbacks.

    Only the browser's first language counts, as in Gradio's page, so that a page has one language.
    """
    http_request = LocalContext.request.get(None)
    accepted = http_request.headers.get("accept-language", "") if http_request else ""
    first = accepted.split(",")[0].split(";")[0].strip()
    known = (name for name in (first, first.split("-")[0]) if name in LANGUAGES)
    return next(known, ENGLISH)


def gettext(text: str, **values: object) -> str:
    """Translate an English text, then fill in its `{names}`."""
    translated = catalog(language()).get(text, text)
    return translated.format(**values) if values else translated


def ngettext(singular: str, plural: str, number: int, **values: object) -> str:
    """`gettext` of the form that suits a number; `{number}` is filled in."""
    is_singular = number == 1 or (number == 0 and language() in SINGULAR_ZERO)
    return gettext(singular if is_singular else plural, number=f"{number:,}", **values)


def error_text(error: CanvasError) -> str:
    """The message of an error in the visitor's language."""
    return without_paths(translate_message(*error.args)) if len(error.args) == 1 else str(error)


def translate_message(message: object) -> str:
    """A LazyMessage and its values in the visitor's language; anything else as text."""
    if not isinstance(message, LazyMessage):
        return str(message)
    values = {name: translate_message(value) for name, value in message.values.items()}
    return gettext(message.template).format(**values)


def translate_blocks(page: gr.Blocks) -> None:
    """Replace every text of the built page by a key that the browser translates.

    English needs keys, too: Gradio also looks up the values of fields, so with an English text as
    its own key it would translate what a visitor typed or chose.
    """
    keys: dict[str, str] = {}
    for block in page.blocks.values():
        for name, text in list(texts_of(block)):
            setattr(block, name, _i18n_key(text, keys))
        choices = getattr(block, "choices", None)
        if isinstance(block, gr.Dropdown | gr.Radio | gr.CheckboxGroup) and choices:
            block.choices = [(_i18n_key(label, keys), value) for label, value in choices]
    tables = {ENGLISH: {text: text for text in keys}, **{name: catalog(name) for name in LANGUAGES}}
    page.i18n_instance = gr.I18n(
        **{name: {key: table[text] for text, key in keys.items() if text in table} for name, table in tables.items()}
    )


def texts_of(block: object) -> Iterator[tuple[str, str]]:
    """The attributes of a component that hold texts, with the texts."""
    names: tuple[str, ...] = TEXT_ATTRIBUTES
    # The script of a LoginButton compares its value with the one it was built with
    if isinstance(block, gr.Button | gr.Markdown) and not isinstance(block, gr.LoginButton):
        names = (*names, "value")
    for name in names:
        text = getattr(block, name, None)
        if isinstance(text, str) and text:
            yield name, text


def _i18n_key(text: Any, keys: dict[str, str]) -> Any:
    """A marker that Gradio's page replaces by the translation; the text itself without one."""
    if not any(text in catalog(name) for name in LANGUAGES):
        return text
    return str(gr.I18n()(keys.setdefault(text, f"canvas{len(keys)}")))
