"""Translations of the page: one JSON table per language, with the English texts as keys.

Gradio's i18n translates the texts of the built page in the browser; `gettext` translates what a
callback renders, in the same language. A text without a translation stays English.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import gradio as gr
from gradio.context import LocalContext  # private: see tests/ui/test_gradio_private_names.py

from canvas import formatting
from canvas.catalog import ASSETS
from canvas.errors import CanvasError, LazyMessage, without_paths

ENGLISH = "en"
LANGUAGES = ("ar", "de", "es", "fr", "ja", "pt-BR", "zh-CN")  # Gradio's names
SHARED = MappingProxyType({"pt": "pt-BR"})  # languages that show the table of another one
RIGHT_TO_LEFT = ("ar",)
ISOLATE = ("\u2068", "\u2069")  # around text of another direction: first strong isolate
TEXT_ATTRIBUTES = ("label", "info", "placeholder")  # attributes of components that hold texts
SINGULAR_ZERO = ("fr", "pt-BR")  # languages that say "0 image"
SEPARATORS = MappingProxyType(  # thousands, decimals
    {"de": (".", ","), "es": (".", ","), "fr": ("\u202f", ","), "pt-BR": (".", ",")}
)
NUMBER = re.compile(r"(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?: (s|min|kB|MB|GB)(/s)?)?")  # of canvas.formatting
UNITS = MappingProxyType(
    {"s": "{number} s", "min": "{number} min", "kB": "{number} kB", "MB": "{number} MB", "GB": "{number} GB"}
)


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
    base = first.split("-")[0]
    known = (name for name in (first, SHARED.get(base, base)) if name in LANGUAGES)
    return next(known, ENGLISH)


def gettext(text: str, /, **values: object) -> str:
    """Translate an English text, then fill in its `{names}`; numbers get the visitor's notation."""
    translated = catalog(language()).get(text) or localize(text)
    return translated.format(**{name: _value(value) for name, value in values.items()}) if values else translated


def _value(value: object) -> object:
    """A value for a translated text. Right to left, a foreign phrase is isolated so that it keeps its order."""
    if not isinstance(value, str):
        return value
    text = localize(value)
    is_phrase = re.search(r"[ ×]", text) and not text.startswith(ISOLATE[0]) and "://" not in text
    return text.join(ISOLATE) if is_phrase and language() in RIGHT_TO_LEFT else text


def localize(text: str) -> str:
    """A number such as "1,200", "0.3 s" or "4.3 GB" in the visitor's notation; any other text as it is."""
    match = NUMBER.fullmatch(text)
    if match is None:
        return text
    whole, fraction, unit, rate = match.groups()
    thousands, decimal = SEPARATORS.get(language(), (",", "."))
    number = whole.replace(",", thousands) + (fraction or "").replace(".", decimal)
    template = catalog(language()).get(UNITS[unit], UNITS[unit]) if unit else "{number}"
    text = template.format(number=number) + (rate or "")
    return text.join(ISOLATE) if unit and language() in RIGHT_TO_LEFT else text


def format_bytes(size: int) -> str:
    """`formatting.format_bytes` in the visitor's notation."""
    return localize(formatting.format_bytes(size))


def format_duration(seconds: float) -> str:
    """`formatting.format_duration` in the visitor's notation."""
    return localize(formatting.format_duration(seconds))


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
    return gettext(message.template, **{name: translate_message(value) for name, value in message.values.items()})


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
    texts = {name: {key: table[text] for text, key in keys.items() if text in table} for name, table in tables.items()}
    page.i18n_instance = gr.I18n(**texts, **{name: texts[same] for name, same in SHARED.items()})


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
