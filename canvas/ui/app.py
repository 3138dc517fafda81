"""Assembles the page: header, banners, tabs, and the options for `Blocks.launch`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import ASSETS
from canvas.image_formats import encode_base64
from canvas.settings import Settings
from canvas.studio import Studio
from canvas.ui.compare_tab import CompareTab
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.events import bind
from canvas.ui.gallery_tab import GalleryTab
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import translate_blocks
from canvas.ui.models_tab import ModelsTab
from canvas.ui.page_blocks import PageBlocks
from canvas.ui.statistics_tab import StatisticsTab
from canvas.ui.theme import canvas_theme

if TYPE_CHECKING:
    from canvas.server.share_link import ShareLink

SHARE_LINK_TIMEOUT = 30.0  # seconds, as long as Gradio waits for its tunnel
# Gradio keeps the state of up to 10,000 page loads, 0.05 MB each. A page whose state was dropped
# only forgets which image was selected.
MAX_SESSIONS = 256
SCRIPTS = ("page.js", "panel.js", "preferences.js", "address.js", "image_actions.js")
# Not in style.css: Gradio confines the rules of @media to its main column, and toasts are outside of it.
PHONE_TOASTS = """@media (max-width: 860px) {
  body .gradio-container:has([data-tab-id="edit"][aria-selected="true"]) .toast-wrap.toast-wrap {
    inset: 12px 12px auto;
  }
}"""
CACHE_CLEANUP = (3600, 3600)  # seconds: cleanup interval and maximum age of Gradio's cached files


def build_page(
    studio: Studio, link: ShareLink | None = None, *, register_api: Callable[[Studio], None] | None = None
) -> gr.Blocks:
    """The whole page for one studio; `link` is given when the server is shared.

    `register_api` adds functions that are no part of the page, in the same context: Gradio needs a
    tenth of a second to close it.
    """
    page = PageBlocks(
        studio.temp_files,
        log_values=not studio.settings.is_public,
        title="Magic Canvas",
        fill_width=True,
        analytics_enabled=False,
        delete_cache=CACHE_CLEANUP,
    )
    with page:
        _add_banners(page, studio.settings, link)
        gr.HTML(render("header.html"), apply_default_css=False, elem_id="header")
        with gr.Tabs(selected="create", elem_id="tabs", overflow_behavior="wrap") as tabs:
            with gr.Tab("Create", id="create") as create_tab:
                create = CreateTab(studio)
            with gr.Tab("Edit", id="edit") as edit_tab:
                edit = EditTab(studio)
            with gr.Tab("Compare", id="compare") as compare_tab:
                compare = CompareTab(studio, create)
            with gr.Tab("Gallery", id="gallery") as gallery_tab:
                gallery = GalleryTab(studio, create, edit, tabs)
            with gr.Tab("Models", id="models") as models_tab:
                models = ModelsTab(studio)
            with gr.Tab("Statistics", id="statistics") as statistics_tab:
                statistics = StatisticsTab(studio)
        _add_theme_choice(page)
        all_tabs = [create_tab, edit_tab, compare_tab, gallery_tab, models_tab, statistics_tab]
        create.bind_events(page, create_tab, edit, tabs)
        edit.bind_events(page, edit_tab, create, tabs)
        compare.bind_events(compare_tab, all_tabs)
        gallery.bind_events(gallery_tab, all_tabs)
        models.bind_events(models_tab, all_tabs, create, tabs)
        statistics.bind_events(statistics_tab)
        translate_blocks(page)
        if register_api:
            register_api(studio)
    return page


def _add_banners(page: gr.Blocks, settings: Settings, link: ShareLink | None) -> None:
    if settings.sign_in:
        gr.LoginButton("Sign in", "Sign out {}", size="sm", elem_id="sign-in", scale=0)
    if link or not settings.persistent:
        banners = panel("banners")
        bind(page.load, lambda: render_banners(settings, link), None, banners)


def _add_theme_choice(page: gr.Blocks) -> None:
    """The choice between light and dark, kept and applied by the browser alone: see preferences.js."""
    themes = [("System", "system"), ("Light", "light"), ("Dark", "dark")]
    theme = gr.Radio(themes, value="system", label="Theme", elem_id="theme", elem_classes="pills")
    bind(page.load, None, None, theme, js="() => magicCanvas.theme()")
    bind(theme.input, None, theme, None, js="(theme) => magicCanvas.setTheme(theme)")


def render_banners(settings: Settings, link: ShareLink | None) -> str:
    """The banners above the header. Waits until the share link is open or has failed."""
    if link:
        link.ready.wait(SHARE_LINK_TIMEOUT)
    qr_code = link.qr_svg() if link and link.address else ""
    return render("banner.html", link=link, qr_code=qr_code, persistent=settings.persistent)


def launch_options() -> dict[str, Any]:
    """Arguments of `Blocks.launch` for the look of the page."""
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    return {
        "theme": canvas_theme(),
        "css": _heading_font(),
        "css_paths": ASSETS / "style.css",
        "head": f"<style>{PHONE_TOASTS}</style><script>{script}</script>",
        "favicon_path": ASSETS / "icon.png",
        "footer_links": ["api"],
        "ssr_mode": False,
        "state_session_capacity": MAX_SESSIONS,
    }


def _heading_font() -> str:
    """A @font-face rule with the font embedded, so that it needs no request."""
    font = encode_base64((ASSETS / "fonts" / "Fraunces-SemiBold.woff2").read_bytes())
    source = f'url("data:font/woff2;base64,{font}") format("woff2")'
    return f"@font-face {{ font-family: Fraunces; font-weight: 600; src: {source} }}"
