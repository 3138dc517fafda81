"""Assembles the page: the header, the tabs, and how it is dressed."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.catalog import ASSETS
from canvas.ui.compare_tab import CompareTab
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.events import bind
from canvas.ui.gallery_tab import GalleryTab
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import translate_blocks
from canvas.ui.models_tab import ModelsTab
from canvas.ui.statistics_tab import StatisticsTab
from canvas.ui.theme import canvas_theme

if TYPE_CHECKING:
    from canvas.server.share_link import ShareLink
    from canvas.settings import Settings
    from canvas.studio import Studio

PATIENCE = 30.0  # seconds: Gradio gives the tunnel as many


def render_banners(settings: Settings, link: ShareLink | None) -> str:
    """The lines above the header, once it is known whether there is a link."""
    if link:
        link.ready.wait(PATIENCE)
    qr = link.qr_svg() if link and link.address else ""
    return render("notice.html", link=link, qr=qr, lasting=settings.persistent)


# Gradio keeps 0.3 MB for every time that the page was opened, up to 10,000 of them. A tab that
# was not used for so many others only forgets which picture was picked.
SESSIONS = 256
KEEP_UPLOADS = (3600, 3600)  # seconds: how often Gradio's cache is swept, and from what age on


def build_page(studio: Studio, link: ShareLink | None = None) -> gr.Blocks:
    """The whole page over one studio; importing torch is left to the studio's workers.

    `link` is given where the server is shared.
    """
    with gr.Blocks(
        title="Magic Canvas", fill_width=True, analytics_enabled=False, delete_cache=KEEP_UPLOADS
    ) as page:
        _render_banners(page, studio.settings, link)
        gr.HTML(render("header.html"), apply_default_css=False, elem_id="header")
        with gr.Tabs(selected="create", elem_id="tabs") as tabs:
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
        create.bind_events(page)
        edit.bind_events(page, edit_tab)
        every = [create_tab, edit_tab, compare_tab, gallery_tab, models_tab, statistics_tab]
        gallery.bind_events(gallery_tab, [tab for tab in every if tab is not gallery_tab])
        compare.bind_events(compare_tab, [tab for tab in every if tab is not compare_tab])
        models.bind_events(models_tab, [tab for tab in every if tab is not models_tab])
        statistics.bind_events(statistics_tab)
    translate_blocks(page)
    return page


def _render_banners(page: gr.Blocks, settings: Settings, link: ShareLink | None) -> None:
    if settings.sign_in:
        gr.LoginButton("Sign in", "Sign out {}", size="sm", elem_id="sign-in", scale=0)
    if link or not settings.persistent:
        told = panel("notices")
        bind(page.load, lambda: render_banners(settings, link), None, told)


def heading_font() -> str:
    """The rule of the headings' font: its Latin letters inside, so that it needs no request."""
    letters = base64.b64encode((ASSETS / "fonts" / "Fraunces-SemiBold.woff2").read_bytes())
    source = f'url("data:font/woff2;base64,{letters.decode("ascii")}") format("woff2")'
    return f"@font-face {{ font-family: Fraunces; font-weight: 600; src: {source} }}"


def launch_options() -> dict[str, Any]:
    """What `Blocks.launch` takes so that the page looks as it should."""
    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    return {
        "theme": canvas_theme(),
        "css": heading_font(),
        "css_paths": ASSETS / "style.css",
        "head": f"<script>{script}</script>",
        "favicon_path": ASSETS / "icon.png",
        "footer_links": ["api"],
        "ssr_mode": False,
        "state_session_capacity": SESSIONS,
    }
