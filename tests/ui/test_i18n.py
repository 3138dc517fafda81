"""Every text of the page in every language, and the page as two languages show it."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from types import SimpleNamespace

import pytest
from gradio.context import LocalContext
from jinja2 import nodes
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.backends import inference_providers, remote_backends
from canvas.catalog import ASSETS, MODELS
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.models import hub_client
from canvas.presets import PRESETS
from canvas.request import BACKENDS, IMAGE_FORMATS, TASKS
from canvas.schedulers import SCHEDULERS
from canvas.settings import Settings
from canvas.styles import STYLES
from canvas.ui import events, gallery_tab, i18n
from canvas.ui.app import build_page
from canvas.ui.html_panel import _environment
from tests.test_structure import ROOT, TREES
from tests.ui.conftest import PATIENCE

TEMPLATES = sorted((ASSETS / "templates").glob("*.html"))
SHOWN_ATTRIBUTES = {"aria-label", "title", "alt", "placeholder", "data-confirm"}
NAMES = {"Magic Canvas", "px", *SCHEDULERS, *IMAGE_FORMATS, *MODELS}  # the same everywhere


def has_words(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2}", text)) and text not in NAMES


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The texts of the built page by their keys in Gradio's i18n, and what stayed as it is."""
    with Studio(Settings(data_dir=tmp_path_factory.mktemp("built"))) as studio:
        page = build_page(studio)
    english = page.i18n_instance.translations["en"]
    held = [text for block in page.blocks.values() for _, text in i18n.texts_of(block)]
    chosen = [
        name for block in page.blocks.values() for name, _ in getattr(block, "choices", None) or ()
    ]
    unknown = [text for text in (*held, *chosen) if "__i18n__" not in str(text)]
    return {**english, **{text: text for text in unknown if has_words(str(text))}}


def of_python(path: Path) -> Iterator[str]:
    """The texts in calls of `gettext` and `ngettext`."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            wanted = {"gettext": 1, "ngettext": 2}.get(node.func.id, 0)
            texts = node.args[:wanted]
            yield from (str(text.value) for text in texts if isinstance(text, ast.Constant))


def of_errors(path: Path) -> Iterator[str]:
    """The sentences of `LazyMessage`, given as they are or by a name of their module."""
    tree = TREES[path]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    said = [call.args[0] for call in calls if getattr(call.func, "id", "") == "Said"]
    names = {node.id for node in said if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names:
            said.append(node.value)
    yield from (str(text.value) for text in said if isinstance(text, ast.Constant))


def of_template(path: Path) -> Iterator[str]:
    """The texts in calls of `_` and `ngettext`."""
    tree = _environment().parse(path.read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in ("_", "ngettext"):
            yield from (one.value for one in call.args if isinstance(one, nodes.Const))


def rendered() -> Iterator[tuple[str, str]]:
    """Every text that callbacks render, and where it stands."""
    for path in (*(ROOT / "canvas" / "ui").glob("*.py"), ROOT / "canvas" / "models.py"):
        yield from ((text, path.name) for text in of_python(path))
    for path in TEMPLATES:
        yield from ((text, path.name) for text in of_template(path))
    for name in re.findall(
        r'^ +\("([A-Z].*?)", ', Path(gallery_tab.__file__).read_text("utf-8"), re.M
    ):
        yield name, "opened.py"  # the names of a picture's settings
    yield from ((door, "opened.py") for door in gallery_tab.CLIENT_LABELS.values())
    for path in TREES:
        yield from ((text, path.name) for text in of_errors(path))
    tables = (
        *inference_providers.ERROR_MESSAGES.values(),
        *(sentence for _, sentence in hub_client.ERROR_MESSAGES.values()),
    )
    terms = (remote_backends.TO_ANY_PROVIDER, remote_backends.TO_PROVIDER)
    for text in (*tables, *terms, *BACKENDS.values()):
        yield text, "provider.py, hub_client.py, remote_backends.py, where.py"
    for title in events.TITLES.values():
        yield title, "events.py"
    for spec in MODELS.values():
        said = (spec.description, spec.speed, spec.quality, spec.size)
        yield from ((text, "catalog.py") for text in said if not text[:1].isdigit())
    for name in (*PRESETS, *(preset.capitalize() for preset in PRESETS), *STYLES):
        yield name, "modes.py, styles.py"
    for task in TASKS[1:]:
        yield task.replace("_", " "), "tasks.py"


def written() -> set[str]:
    """Every string in the modules that may hold texts of the page, in tables for example."""
    paths = (*(ROOT / "canvas").glob("*.py"), *(ROOT / "canvas" / "ui").glob("*.py"))
    found = (node for path in paths for node in ast.walk(TREES[path]))
    return {str(node.value) for node in found if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_every_text_is_translated(built: dict[str, str], language: str) -> None:
    texts = {text: "the built page" for text in built.values()} | dict(rendered())
    known = i18n.catalog(language)
    missing = [f"{text!r} ({where})" for text, where in texts.items() if text and text not in known]
    table = f"assets/languages/{language}.json"
    assert not missing, f"add to {table}, by the English text: " + ", ".join(missing)
    unused = set(known) - set(texts) - written()
    assert not unused, f"nothing shows these any more; take them out of {table}: {unused}"
    assert list(known) == sorted(known), f"{table} is not in the order of the English texts"


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_translations_fill_in_the_same_things(language: str) -> None:
    for text, translation in i18n.catalog(language).items():
        assert fields_of(text) == fields_of(translation), f"{language}: {translation!r}"
        assert translation.strip()
        assert "<" not in translation


def fields_of(text: str) -> set[str | None]:
    return {field for _, field, _, _ in Formatter().parse(text)} - {None}


class Words(HTMLParser):
    """Collects what a reader sees or hears of a template, code taken out."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found += [data.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in SHOWN_ATTRIBUTES]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_ask_for_every_translation(path: Path) -> None:
    words = Words()
    words.feed(re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}", "", path.read_text(encoding="utf-8"), flags=re.S))
    bare = [text for text in words.found if has_words(text)]
    assert not bare, f'{path.name}: write {{{{ _("…") }}}} around {bare}'


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("fr", "fr"),
        ("zh-CN,zh;q=0.9", "zh-CN"),
        ("it-IT,de;q=0.9", "en"),  # Gradio's own texts are Italian then: not a third language
        ("en-GB", "en"),
        ("zh-TW", "en"),
        ("", "en"),
        ("*", "en"),
        ("../../etc/passwd", "en"),
    ],
)
def test_the_first_language_counts(accepted: str, language: str) -> None:
    asked = LocalContext.request.set(SimpleNamespace(headers={"accept-language": accepted}))
    try:
        assert i18n.language() == language
        assert i18n.gettext("Settings") == i18n.catalog(language).get("Settings", "Settings")
    finally:
        LocalContext.request.reset(asked)


def test_numbers_choose_the_form() -> None:
    one, many = "{number} picture", "{number} pictures"
    assert i18n.ngettext(one, many, 1) == "1 picture"
    assert i18n.ngettext(one, many, 1200) == "1,200 pictures"
    asked = LocalContext.request.set(SimpleNamespace(headers={"accept-language": "fr"}))
    try:
        assert i18n.ngettext(one, many, 0) == "0 image"
        assert i18n.ngettext(one, many, 2) == "2 images"
    finally:
        LocalContext.request.reset(asked)


def test_an_error_is_said_in_the_visitors_language() -> None:
    most = LazyMessage("at most {number} characters", number="10,000")
    error = pickle.loads(pickle.dumps(InvalidInput("prompt", "…", most)))  # noqa: S301 - our own
    assert str(error) == "prompt: '…' cannot be used; allowed is at most 10,000 characters."
    asked = LocalContext.request.set(SimpleNamespace(headers={"accept-language": "de"}))
    try:
        assert (
            i18n.error_text(error)
            == "prompt: '…' geht nicht; erlaubt ist höchstens 10,000 Zeichen."
        )
        assert i18n.error_text(CanvasError("{as} it is")) == "{as} it is"
    finally:
        LocalContext.request.reset(asked)


VISITS = {
    "de-DE": ("Malen", "Galerie", "Modell", "Stil", "Seitenverhältnis", "Schritt", "Favorit"),
    "ja-JP": ("生成", "ギャラリー", "モデル", "スタイル", "縦横比", "ステップ", "お気に入り"),
}


@pytest.mark.parametrize("locale", VISITS)
def test_the_page_speaks_the_browsers_language(
    served: Studio, browser: Browser, locale: str
) -> None:
    generate, gallery, model, style, ratio, step, favourite = VISITS[locale]
    expect.set_options(timeout=PATIENCE)
    with browser.new_context(locale=locale) as context:
        context.set_default_timeout(PATIENCE)
        page = context.new_page()
        page.goto(served.address)  # type: ignore[attr-defined]
        language, _, _ = locale.partition("-")
        said = i18n.catalog(language)
        page.get_by_role("button", name=said["Settings"], exact=True).click()
        for label in (model, style):
            expect(page.get_by_label(label, exact=True).first).to_be_visible()
        expect(page.get_by_text(ratio, exact=True)).to_be_visible()
        choose_style(page, style, said["anime"])
        prompt = f"a fox in the snow for {locale}"
        page.get_by_label(said["Prompt"], exact=True).fill(prompt)
        expect(page.locator("#summary")).to_contain_text(said["anime"])
        page.get_by_role("button", name=generate, exact=True).click()
        expect(page.locator(".stage-picture .told .prompt")).to_have_text(prompt)
        expect(page.locator(".facts")).to_contain_text(step)
        page.get_by_role("tab", name=gallery, exact=True).click()
        page.locator(".tile").first.click()
        expect(page.get_by_role("dialog").get_by_role("button", name=favourite)).to_be_visible()
        assert page.evaluate("document.documentElement.lang") == language
    [image] = served.recent("local", 1)
    assert (image.request.prompt, image.request.style) == (prompt, "anime")


def choose_style(page: Page, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=name, exact=True).click()
