"""The page in the visitor's language: one table a language, its keys the English texts.

What the built page shows goes through Gradio's own i18n, which chooses by the browser's first
language; what a callback renders asks for the same language here. Without a table, or for a
text that a table lacks, the text stays English.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import gradio as gr
from gradio.context import LocalContext
from gradio.i18n import I18nData

from canvas.catalog import ASSETS
from canvas.errors import CanvasError, LazyMessage

ENGLISH = "en"
LANGUAGES = ("de", "es", "fr", "ja", "zh-CN")  # named as Gradio names those of its own texts
TEXT_ATTRIBUTES = ("label", "info", "placeholder")  # attributes of components that are texts
SINGULAR_ZERO = ("fr",)


@lru_cache(maxsize=len(LANGUAGES) + 1)
def catalog(language: str) -> Mapping[str, str]:
    """The translations of a language by English text; none for English."""
    if language == ENGLISH:
        return {}
    path = ASSETS / "languages" / f"{language}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def language() -> str:
    """The language of whoever called this callback, English outside of callbacks.

    Only the browser's first language counts, as in Gradio's page: one page, one language.
    """
    request = LocalContext.request.get(None)
    accepted = request.headers.get("accept-language", "") if request else ""
    first = accepted.split(",")[0].split(";")[0].strip()
    known = (name for name in (first, first.split("-")[0]) if name in LANGUAGES)
    return next(known, ENGLISH)


def gettext(text: str, **values: object) -> str:
    """This English text in the visitor's language, then its `{names}` filled in."""
    said = catalog(language()).get(text, text)
    return said.format(**values) if values else said


def error_text(error: CanvasError) -> str:
    """What an error says, in the visitor's language as far as the tables know it."""
    return translate_message(*error.args) if len(error.args) == 1 else str(error)


def translate_message(said: object) -> str:
    """A sentence with its parts in the visitor's language."""
    if not isinstance(said, LazyMessage):
        return str(said)
    values = {name: translate_message(value) for name, value in said.values.items()}
    return gettext(said.template).format(**values)


def ngettext(one: str, many: str, number: int, **values: object) -> str:
    """`gettext` of the text that suits a number, which fills `{number}`."""
    is_one = number == 1 or (number == 0 and language() in SINGULAR_ZERO)
    return gettext(one if is_one else many, number=f"{number:,}", **values)


def translate_blocks(page: gr.Blocks) -> None:
    """Have the browser choose the language of every text that is built into the page.

    Each becomes a key of Gradio's i18n, English ones too: Gradio also looks up the values of
    fields, so an English text as its own key would translate what a visitor wrote or chose.
    """
    keys: dict[str, str] = {}
    for block in page.blocks.values():
        for name, text in list(texts_of(block)):
            setattr(block, name, _i18n_key(text, keys))
        choices = getattr(block, "choices", None)
        if isinstance(block, gr.Dropdown | gr.Radio | gr.CheckboxGroup) and choices:
            block.choices = [(_i18n_key(name, keys), value) for name, value in choices]
    known = {ENGLISH: {text: text for text in keys}, **{name: catalog(name) for name in LANGUAGES}}
    page.i18n_instance = gr.I18n(
        **{
            name: {key: said[text] for text, key in keys.items() if text in said}
            for name, said in known.items()
        }
    )


def texts_of(block: object) -> Iterator[tuple[str, str]]:
    """The texts that a component shows, each with the attribute that holds it."""
    is_text = isinstance(block, gr.Button | gr.Markdown)
    # A LoginButton's script compares its words with those that it was made with
    held = (
        (*TEXT_ATTRIBUTES, "value")
        if is_text and not isinstance(block, gr.LoginButton)
        else TEXT_ATTRIBUTES
    )
    for name in held:
        text = getattr(block, name, None)
        if isinstance(text, str) and text:
            yield name, text


def _i18n_key(text: Any, keys: dict[str, str]) -> Any:
    """What Gradio's page replaces by the translation; a text that no table has, as it is."""
    if not any(text in catalog(name) for name in LANGUAGES):
        return text
    return str(I18nData(keys.setdefault(text, f"canvas{len(keys)}")))
