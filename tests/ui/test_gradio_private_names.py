"""The private names of Gradio that canvas/ui and assets use still exist.

When one of these tests fails after an update of Gradio, look up the new name and change it in the
file that the message names.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import Page

from canvas.catalog import ASSETS
from canvas.ui.generation_form import ResolutionSlider
from canvas.ui.i18n import TEXT_ATTRIBUTES

# Elements and classes of Gradio's own that assets/style.css selects
GRADIO_SELECTORS = (
    "main",
    "#tabs .tab-wrapper .tab-container button.selected",
    "#tabs .tab-container [role=tab][data-tab-id=gallery]",  # also in address.js
    "#tabs .tabitem",
    "#settings-panel .form .block",
    "#preset .wrap label.selected",
)
FRONTEND = Path(gr.__file__).parent / "templates" / "frontend" / "assets"


def renamed(name: str, file: str) -> str:
    return f"Gradio {gr.__version__} has renamed or removed {name}: update {file}"


@pytest.fixture
def blocks() -> Iterator[gr.Blocks]:
    with gr.Blocks(analytics_enabled=False) as blocks:
        gr.Textbox(label="Text", info="Info", placeholder="Placeholder")
        gr.Dropdown(["a", ("B", "b")], label="Choice")
        gr.Button("Press")
    yield blocks


def test_local_context_holds_the_request() -> None:
    from gradio import context

    variable = getattr(getattr(context, "LocalContext", None), "request", None)
    assert hasattr(variable, "get"), renamed("gradio.context.LocalContext.request", "canvas/ui/i18n.py")


def test_the_queue_keeps_its_poll_intervals_as_attributes(blocks: gr.Blocks) -> None:
    for name in ("sleep_when_free", "progress_update_sleep_when_free"):
        assert hasattr(getattr(blocks, "_queue", None), name), renamed(f"Queue.{name}", "canvas/ui/page_blocks.py")


def test_blocks_lists_its_components_by_id(blocks: gr.Blocks) -> None:
    components = getattr(blocks, "blocks", {})
    assert len(components) >= 3, renamed("Blocks.blocks", "translate_blocks in canvas/ui/i18n.py")


def test_components_keep_texts_and_choices_as_attributes(blocks: gr.Blocks) -> None:
    textbox, dropdown, button = (
        next(block for block in blocks.blocks.values() if isinstance(block, kind))
        for kind in (gr.Textbox, gr.Dropdown, gr.Button)
    )
    for name in TEXT_ATTRIBUTES:
        assert getattr(textbox, name, ""), renamed(f"Textbox.{name}", "TEXT_ATTRIBUTES in i18n.py")
    assert button.value == "Press", renamed("Button.value", "texts_of in canvas/ui/i18n.py")
    choices = [("a", "a"), ("B", "b")]
    assert dropdown.choices == choices, renamed("Dropdown.choices", "translate_blocks in i18n.py")


def test_changed_attributes_reach_the_page(blocks: gr.Blocks) -> None:
    """`translate_blocks` changes components after the page was built."""
    button = next(block for block in blocks.blocks.values() if isinstance(block, gr.Button))
    button.value = "Changed"
    configs = [component["props"].get("value") for component in blocks.get_config_file()["components"]]
    assert "Changed" in configs, renamed("the attributes in the page's config", "canvas/ui/i18n.py")


def test_i18n_instance_is_sent_to_the_page(blocks: gr.Blocks) -> None:
    blocks.i18n_instance = gr.I18n(en={"key": "text"})
    translations = blocks.get_config_file().get("i18n_translations")
    assert translations == {"en": {"key": "text"}}, renamed(
        "Blocks.i18n_instance or i18n_translations", "canvas/ui/i18n.py and assets/page.js"
    )


def test_is_template_uses_the_front_end_of_the_base_class(blocks: gr.Blocks) -> None:
    with blocks:
        slider = ResolutionSlider(0, 1)
    assert slider.get_block_name() == "slider", renamed("is_template", "canvas/ui/generation_form.py")


def test_blocks_can_be_guarded() -> None:
    names = list(inspect.signature(gr.Blocks.process_api).parameters)
    assert names[:6] == ["self", "block_fn", "inputs", "state", "request", "iterator"], renamed(
        "Blocks.process_api", "canvas/ui/page_blocks.py"
    )
    source = inspect.getsource(gr.Blocks.process_api)
    assert "await self.preprocess_data(" in source, renamed("Blocks.preprocess_data", "canvas/ui/page_blocks.py")


def test_the_page_has_its_config_and_gradios_classes(page: Page) -> None:
    assert page.evaluate("Object.keys(window.gradio_config?.i18n_translations ?? {}).includes('de')"), renamed(
        "window.gradio_config.i18n_translations", "pageLanguage in assets/page.js"
    )
    page.locator("#settings-button").click()
    for selector in GRADIO_SELECTORS:
        assert page.locator(selector).count(), renamed(selector, "assets/style.css")


@pytest.mark.parametrize(
    "name",
    [
        *("toast-wrap", "toast-body", "toast-title", "contain", "half-container", "icon-button-wrapper"),
        *("secondary-wrap", "icon-wrap"),
    ],
)
def test_gradios_scripts_contain_class(name: str) -> None:
    assert re.search(rf"\.{name}\b", (ASSETS / "style.css").read_text(encoding="utf-8"))
    scripts = (path.read_text(encoding="utf-8") for path in FRONTEND.glob("*.js"))
    assert any(name in script for script in scripts), renamed(f".{name}", "assets/style.css")
