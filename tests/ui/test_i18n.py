"""Every text of the page is translated, and the page follows the browser's language."""

from __future__ import annotations

import ast
import pickle
import re
from collections.abc import Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter

import pytest
from jinja2 import nodes
from playwright.sync_api import Browser, Page, expect

from canvas import Studio
from canvas.backends import inference_providers, remote_backends
from canvas.catalog import ASSETS, MODELS
from canvas.errors import CanvasError, InvalidInput, LazyMessage, error_classes, field_label
from canvas.models import hub_client, loras
from canvas.models.families import FAMILIES
from canvas.presets import PRESETS
from canvas.request import BACKENDS, IMAGE_FORMATS, TASKS, GenerationRequest
from canvas.schedulers import SCHEDULERS
from canvas.settings import Settings
from canvas.styles import STYLES
from canvas.ui import gallery_tab, i18n
from canvas.ui.app import build_page
from canvas.ui.html_panel import _environment
from tests.hub_server import Fault, LocalHub
from tests.test_structure import ROOT, TREES
from tests.ui.conftest import TIMEOUT, browser_language

TEMPLATES = sorted((ASSETS / "templates").glob("*.html"))
SHOWN_ATTRIBUTES = {"aria-label", "title", "alt", "placeholder", "data-confirm"}
NAMES = {
    "Magic Canvas",
    "px",
    *SCHEDULERS,
    *IMAGE_FORMATS,
    *MODELS,
    *(spec.title for spec in MODELS.values()),
    *(family.label for family in FAMILIES),
}  # the same everywhere


def has_words(text: str) -> bool:
    return bool(re.search(r"[A-Za-z]{2}", text)) and text not in NAMES


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The texts of the built page by their keys in Gradio's i18n, and texts without a key."""
    with Studio(Settings(data_dir=tmp_path_factory.mktemp("built"))) as studio:
        page = build_page(studio)
    english = page.i18n_instance.translations["en"]
    texts = [text for block in page.blocks.values() for _, text in i18n.texts_of(block)]
    choices = [name for block in page.blocks.values() for name, _ in getattr(block, "choices", None) or ()]
    unknown = [text for text in (*texts, *choices) if "__i18n__" not in str(text)]
    return {**english, **{text: text for text in unknown if has_words(str(text))}}


def texts_of_gettext(path: Path) -> Iterator[str]:
    """The texts in calls of `gettext` and `ngettext`."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            num_texts = {"gettext": 1, "ngettext": 2}.get(node.func.id, 0)
            texts = node.args[:num_texts]
            yield from (str(text.value) for text in texts if isinstance(text, ast.Constant))


def texts_of_messages(path: Path) -> Iterator[str]:
    """The templates of `LazyMessage`, given as strings or by a name in their module."""
    tree = TREES[path]
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    templates = [call.args[0] for call in calls if getattr(call.func, "id", "") == "LazyMessage"]
    names = {node.id for node in templates if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in names:
            templates.append(node.value)
    yield from (str(text.value) for text in templates if isinstance(text, ast.Constant))


def texts_of_template(path: Path) -> Iterator[str]:
    """The texts in calls of `_` and `ngettext`."""
    tree = _environment().parse(path.read_text(encoding="utf-8"))
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in ("_", "ngettext"):
            yield from (text.value for text in call.args if isinstance(text, nodes.Const))


def rendered() -> Iterator[tuple[str, str]]:
    """Every text that callbacks render, and the file that holds it."""
    for path in (*(ROOT / "canvas" / "ui").glob("*.py"), ROOT / "canvas" / "model_status.py"):
        yield from ((text, path.name) for text in texts_of_gettext(path))
    for path in TEMPLATES:
        yield from ((text, path.name) for text in texts_of_template(path))
    source = Path(gallery_tab.__file__).read_text(encoding="utf-8")
    labels = re.findall(r'^ +\("([A-Z].*?)", ', source, re.MULTILINE)
    for text in (*labels, *gallery_tab.CLIENT_LABELS.values()):
        yield text, "gallery_tab.py"
    for path in TREES:
        yield from ((text, path.name) for text in texts_of_messages(path))
    tables = (
        *inference_providers.ERROR_MESSAGES.values(),
        *(message for _, message in hub_client.ERROR_MESSAGES.values()),
    )
    terms = (remote_backends.AUTO_PROVIDER_TERMS, remote_backends.PROVIDER_TERMS)
    kinds = (*loras.KINDS, loras.OTHER_KIND)
    for text in (*tables, *terms, *kinds, *BACKENDS.values()):
        yield text, "inference_providers.py, hub_client.py, remote_backends.py, loras.py, request.py"
    for kind in error_classes().values():
        yield kind.title, "errors.py"
    for field in fields(GenerationRequest):
        yield field_label(field.name), "field_label in errors.py"
    yield from texts_of_choices()


def texts_of_choices() -> Iterator[tuple[str, str]]:
    """The texts of models, presets, styles and tasks."""
    for spec in MODELS.values():
        texts = (spec.description, spec.specialty, spec.speed, spec.quality, spec.size)
        yield from ((text, "catalog.py") for text in texts if not text[:1].isdigit())
    for name in (*PRESETS, *(preset.capitalize() for preset in PRESETS), *STYLES):
        yield name, "presets.py, styles.py"
    for task in TASKS[1:]:
        yield task.replace("_", " "), "request.py"


def string_constants() -> set[str]:
    """Every string in the modules that may hold texts of the page, in tables for example."""
    paths = (*(ROOT / "canvas").glob("*.py"), *(ROOT / "canvas" / "ui").glob("*.py"))
    found = (node for path in paths for node in ast.walk(TREES[path]))
    return {str(node.value) for node in found if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_every_text_is_translated(built: dict[str, str], language: str) -> None:
    texts = {text: "the built page" for text in built.values()} | dict(rendered())
    known = i18n.catalog(language)
    missing = [f"{text!r} ({file})" for text, file in texts.items() if text and text not in known]
    table = f"assets/languages/{language}.json"
    assert not missing, f"add to {table}, by the English text: " + ", ".join(missing)
    unused = set(known) - set(texts) - string_constants()
    assert not unused, f"not used any more, remove them from {table}: {unused}"
    assert list(known) == sorted(known), f"{table} is not sorted by the English texts"


@pytest.mark.parametrize("language", i18n.LANGUAGES)
def test_translations_use_the_same_placeholders(language: str) -> None:
    for text, translation in i18n.catalog(language).items():
        assert placeholders(text) == placeholders(translation), f"{language}: {translation!r}"
        assert translation.strip()
        assert "<" not in translation


def placeholders(text: str) -> set[str | None]:
    return {field for _, field, _, _ in Formatter().parse(text)} - {None}


class VisibleTexts(HTMLParser):
    """Collects the texts and the text attributes of a template without its code."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.texts += [value or "" for name, value in attrs if name in SHOWN_ATTRIBUTES]


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates_translate_every_text(path: Path) -> None:
    parser = VisibleTexts()
    parser.feed(re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}", "", path.read_text(encoding="utf-8"), flags=re.S))
    untranslated = [text for text in parser.texts if has_words(text)]
    assert not untranslated, f'{path.name}: write {{{{ _("…") }}}} around {untranslated}'


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("de-DE,de;q=0.9,en;q=0.8", "de"),
        ("fr", "fr"),
        ("zh-CN,zh;q=0.9", "zh-CN"),
        ("ar-EG,ar;q=0.9", "ar"),
        ("pt-BR", "pt-BR"),
        ("pt-PT,pt;q=0.9", "pt-BR"),
        ("it-IT,de;q=0.9", "en"),  # Gradio's own texts are Italian then: not a third language
        ("en-GB", "en"),
        ("zh-TW", "en"),
        ("", "en"),
        ("*", "en"),
        ("../../etc/passwd", "en"),
    ],
)
def test_the_first_language_of_the_browser_is_used(accepted: str, language: str) -> None:
    with browser_language(accepted):
        assert i18n.language() == language
        assert i18n.gettext("Gallery") == i18n.catalog(language).get("Gallery", "Gallery")


def test_ngettext_chooses_the_plural_form() -> None:
    forms = "{number} image", "{number} images"
    assert i18n.ngettext(*forms, 1) == "1 image"
    assert i18n.ngettext(*forms, 1200) == "1,200 images"
    with browser_language("fr"):
        assert i18n.ngettext(*forms, 0) == "0 image"
        assert i18n.ngettext(*forms, 2) == "2 images"


@pytest.mark.parametrize(
    ("language", "expected"),
    [
        ("en", ["1,200", "0.3 s", "3 min", "4.3 GB/s", "v1.5"]),
        ("de", ["1.200", "0,3 s", "3 min", "4,3 GB/s", "v1.5"]),
        ("fr", ["1\u202f200", "0,3 s", "3 min", "4,3 Go/s", "v1.5"]),
        ("ja", ["1,200", "0.3 秒", "3 分", "4.3 GB/s", "v1.5"]),
    ],
)
def test_numbers_are_shown_in_the_visitors_notation(language: str, expected: list[str]) -> None:
    with browser_language(language):
        assert [i18n.localize(text) for text in ("1,200", "0.3 s", "3 min", "4.3 GB/s", "v1.5")] == expected
        assert i18n.gettext("{time} left", time="0.3 s").count(expected[1]) == 1


def test_foreign_phrases_keep_their_order_from_right_to_left() -> None:
    with browser_language("ar"):
        assert "\u2068512 × 768\u2069" in i18n.gettext("native {size}", size="512 × 768")
        assert "\u2068" not in i18n.gettext("The licence has conditions: {terms}", terms="https://example.org/a b")
    with browser_language("de"):
        assert "\u2068" not in i18n.gettext("native {size}", size="512 × 768")


def test_errors_are_shown_in_the_visitors_language() -> None:
    allowed = LazyMessage("at most {number} characters", number="10,000")
    error = pickle.loads(pickle.dumps(InvalidInput("prompt", "…", allowed)))  # noqa: S301 - our own
    assert str(error) == "Prompt must be at most 10,000 characters (got '…')."
    with browser_language("de"):
        german = i18n.catalog("de")
        template, allowed = (german["{field} must be {allowed} (got {value})."], german[allowed.template])
        expected = template.format(field=german["Prompt"], allowed=allowed.format(number="10.000"), value="'…'")
        assert i18n.error_text(error) == expected != str(error)
        assert i18n.error_text(CanvasError("{not} a template")) == "{not} a template"


VISITS = {
    "de-DE": ("Generieren", "Galerie", "Modell", "Stil", "Seitenverhältnis", "Schritt", "Favorit"),
    "ar-EG": ("توليد", "المعرض", "النموذج", "النمط", "نسبة الأبعاد", "الخطوات", "مفضّلة"),
    "pt-BR": ("Gerar", "Galeria", "Modelo", "Estilo", "Proporção", "passo", "Favorita"),
    "ja-JP": ("生成", "ギャラリー", "モデル", "スタイル", "縦横比", "ステップ", "お気に入り"),
}


@pytest.mark.parametrize("locale", VISITS)
def test_the_page_is_shown_in_the_browsers_language(served: Studio, browser: Browser, locale: str) -> None:
    generate, gallery, model, style, ratio, step, favourite = VISITS[locale]
    expect.set_options(timeout=TIMEOUT)
    with browser.new_context(locale=locale) as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(served.address)  # type: ignore[attr-defined]
        with browser_language(locale):
            language = i18n.language()
        texts = i18n.catalog(language)
        page.get_by_role("button", name=texts["Advanced"], exact=True).click()
        for label in (model, style):
            expect(page.get_by_label(label, exact=True).first).to_be_visible()
        expect(page.get_by_text(ratio, exact=True)).to_be_visible()
        choose_style(page, style, texts["anime"])
        prompt = f"a fox in the snow for {locale}"
        page.get_by_label(texts["Prompt"], exact=True).fill(prompt)
        expect(page.locator("#summary")).to_contain_text(texts["anime"])
        page.get_by_role("button", name=generate, exact=True).click()
        expect(page.locator(".result-images .result-details .prompt")).to_have_text(prompt)
        expect(page.locator(".image-summary")).to_contain_text(step)
        page.get_by_role("tab", name=gallery, exact=True).click()
        page.locator(".tile").first.click()
        expect(page.get_by_role("dialog").get_by_role("button", name=favourite)).to_be_visible()
        root = page.locator("html")
        expect(root).to_have_attribute("lang", language)
        expect(root).to_have_attribute("dir", "rtl" if language == "ar" else "ltr")
    [image] = served.recent("local", 1)
    assert (image.request.prompt, image.request.style) == (prompt, "anime")


def test_the_editor_the_device_numbers_and_errors_of_the_hub_are_german(
    served: Studio, served_hub: LocalHub, browser: Browser
) -> None:
    expect.set_options(timeout=TIMEOUT)
    served.warm_up(wait=True)
    german = i18n.catalog("de")
    lost = german["The connection was lost repeatedly ({detail}). {retry}"]
    with browser_language("de"):
        reason = i18n.translate_message(served.device.reason if served.device else "")
    with browser.new_context(locale="de-DE") as context:
        context.set_default_timeout(TIMEOUT)
        page = context.new_page()
        page.goto(f"{served.address}?tab=edit")  # type: ignore[attr-defined]
        editor = page.locator("#edit-image")
        expect(editor.get_by_role("button", name=german["Brush"], exact=True)).to_be_visible()
        expect(editor).to_contain_text(german["Upload an image"])
        names = editor.locator("[title], [aria-label]")
        shown = names.evaluate_all("all => all.flatMap(each => [each.title, each.ariaLabel].filter(Boolean))")
        assert [text for text in shown if german.get(text, text) != text] == []
        page.get_by_role("tab", name=german["Models"]).click()
        expect(page.locator(".device")).to_contain_text(reason)
        expect(page.locator(".model.hub").first).to_contain_text(re.compile(r"\d,\d GB Download"))
        served_hub.faults["/api/models"] = Fault.breaks(after=0)
        page.get_by_label(german["Add a model"]).fill("fox")
        page.locator("#search-models").click()
        expect(page.locator("#found-models .error")).to_contain_text(lost.partition("(")[0])
        served_hub.faults.clear()
        page.get_by_role("tab", name=german["Create"]).click()
        page.locator("#prompt textarea").fill("a fox")
        expect(page.locator("#preset label").first).to_contain_text(re.compile(r"\d,\d s$"))


def choose_style(page: Page, label: str, name: str) -> None:
    page.get_by_label(label, exact=True).first.click()
    page.get_by_role("option", name=name, exact=True).click()
