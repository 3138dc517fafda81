"""The Gallery tab: filters, grid, selection, detail view, ZIP import and export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from canvas.formatting import format_bytes, format_duration
from canvas.history.images import UserGallery
from canvas.history.queries import to_query_params
from canvas.request import IMAGE_FORMATS, GeneratedImage
from canvas.studio import Studio
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.events import bind, current_owner, run_while_selected, toast_html
from canvas.ui.gallery_filters import GalleryFilters
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import gettext

PAGE_SIZE = 48  # images
POLL_INTERVAL = 1.0  # seconds between checks for images that other programs made
NUM_VARIATIONS = 4
MAX_COMPARE = 6  # images side by side
ENGINES = {"torch": "PyTorch", "openvino": "OpenVINO", "openvino int8": "OpenVINO, int8"}
EDIT_ACTIONS = {"edit": "inpaint", "upscale": "upscale"}  # operations of the Edit tab
CLIENT_LABELS = {
    "page": "Web page",
    "gradio": "Gradio API",
    "mcp": "MCP",
    "openai": "OpenAI API",
    "sdapi": "AUTOMATIC1111 API",
    "python": "Python",
    "cli": "Command line",
}


@dataclass(frozen=True)
class GalleryState:
    """What one visitor sees: the page, the selection, and the deletion that can be undone."""

    page: int = 0
    selecting: bool = False
    selected: tuple[int, ...] = ()
    undo: str = ""  # token
    deleted: int = 0  # number of images


class GalleryTab:
    """Layout and callbacks of the tab."""

    def __init__(self, studio: Studio, create: CreateTab, edit: EditTab, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._create = create
        self._edit = edit
        self._tabs = tabs
        self._state = gr.State(GalleryState())
        self._last_rendered = gr.State(0)  # hash of the grid
        self._timer = gr.Timer(POLL_INTERVAL, active=False)
        self._filters = GalleryFilters(studio)
        self._grid = panel("gallery")
        self._import = gr.UploadButton("Import a ZIP", file_types=[".zip"], size="sm", elem_id="import")
        self._detail = panel("image-detail")

    def bind_events(self, tab: gr.Tab, all_tabs: Sequence[gr.Tab]) -> None:
        inputs = self._filters.widgets | {self._state}
        outputs = {self._grid, self._detail, self._state, self._last_rendered}
        self._filters.bind_events()
        bind(tab.select, self.show, inputs, outputs | self._filters.choice_outputs)
        run_while_selected(self._timer, tab, all_tabs)
        rendered = {self._grid, self._last_rendered}
        bind(self._timer.tick, self.poll, inputs | {self._last_rendered}, rendered, queue=False)
        bind(self._filters.changes, self.show_first_page, inputs, outputs, trigger_mode="always_last")
        bind(self._grid.click, self.on_click, inputs, outputs | {self._tabs}, **self._edit.load_image_options)
        form = self._create.form.widgets | {self._create.selected}
        all_outputs = outputs | form | self._edit.load_image_outputs | {self._tabs}
        bind(self._detail.click, self.on_click, inputs, all_outputs, **self._edit.load_image_options)
        upload = {self._import}
        bind(self._import.upload, self.import_zip, inputs | upload, outputs | upload)

    def _gallery(self, http_request: gr.Request) -> UserGallery:
        return self._studio.user_gallery(current_owner(http_request))

    def show(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        gallery = self._gallery(http_request)
        return {**self._filters.update_choices(gallery), **self._render(values, values[self._state], gallery)}

    def poll(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        updates = self._render(values, values[self._state], self._gallery(http_request))
        if updates[self._last_rendered] == values[self._last_rendered]:
            return {self._last_rendered: gr.skip()}
        return {output: updates[output] for output in (self._grid, self._last_rendered)}

    def show_first_page(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        return self._render(values, GalleryState(), self._gallery(http_request))

    def on_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """An action of the grid or the detail view."""
        gallery, state = self._gallery(http_request), values[self._state]
        if event.action in ("page", "toggle", "select", "unselect"):
            return self._render(values, self._navigate(state, event, gallery), gallery)
        if event.action in ("favourite", "delete", "undo"):
            return self._mutate(values, state, event, gallery)
        if event.action == "compare":
            images = [gallery.image(image_id) for image_id in state.selected[:MAX_COMPARE]]
            return {self._detail: render("compare_dialog.html", images=images)}
        if event.action in ("create", "use_settings", "reuse_seed", "variations", *EDIT_ACTIONS):
            return self._open_in_tab(event, gallery)
        if event.action == "open":
            return {self._detail: render_detail(gallery.image(int(event.image)), gallery.owner)}
        return {self._detail: ""}

    def import_zip(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Import the images of an uploaded ZIP and report what was imported and what failed."""
        gallery = self._gallery(http_request)
        with self._studio.temp_files.take(values[self._import], gallery.owner) as path:
            result = gallery.import_zip(path)
        text = gettext("{new} imported, {known} already in the gallery.", new=result.added, known=result.duplicates)
        gr.Info(toast_html(gettext("Import finished"), " ".join([text, *result.errors[:5]])))
        return self._render(values, GalleryState(), gallery)

    def _navigate(self, state: GalleryState, event: gr.EventData, gallery: UserGallery) -> GalleryState:
        if event.action == "page":
            return replace(state, page=max(0, int(event.page)))
        if event.action == "toggle":
            image_id = gallery.image(int(event.image)).id or 0
            others = tuple(other for other in state.selected if other != image_id)
            return replace(state, selected=others if image_id in state.selected else (*others, image_id))
        return GalleryState(page=state.page, selecting=event.action == "select")

    def _mutate(
        self, values: dict[Any, Any], state: GalleryState, event: gr.EventData, gallery: UserGallery
    ) -> dict[Any, Any]:
        ids = [int(event.image)] if hasattr(event, "image") else list(state.selected)
        if event.action == "favourite":
            gallery.favourite(ids, event.favourite == "true")
            updates = self._render(values, state, gallery)
            if hasattr(event, "image"):
                updates[self._detail] = render_detail(gallery.image(ids[0]), gallery.owner)
            return updates
        if event.action == "delete":
            token, number = gallery.delete(ids)
            state = GalleryState(state.page, undo=token, deleted=number)
        else:
            gallery.undo(state.undo)
            state = GalleryState(state.page)
        return self._render(values, state, gallery)

    def _open_in_tab(self, event: gr.EventData, gallery: UserGallery) -> dict[Any, Any]:
        updates: dict[Any, Any] = {self._detail: "", self._tabs: gr.Tabs(selected="create")}
        if event.action == "create":
            return updates
        image = gallery.image(int(event.image))
        if event.action in EDIT_ACTIONS:
            loaded = self._edit.load_image(int(event.image), gallery.owner, EDIT_ACTIONS[event.action])
            return {**updates, **loaded, self._tabs: gr.Tabs(selected="edit")}
        if event.action in ("use_settings", "reuse_seed"):
            keep_seed = event.action == "reuse_seed"
            return updates | self._create.form.reuse_settings(image.request, keep_seed=keep_seed)
        request = replace(image.request, seed=image.request.seed + 1, num_images=NUM_VARIATIONS)
        self._studio.submit(request, gallery.owner, "page")
        return {**updates, self._create.selected: None}

    def _render(self, values: dict[Any, Any], state: GalleryState, gallery: UserGallery) -> dict[Any, Any]:
        query = self._filters.query(values, gallery.owner)
        total = gallery.count(query)
        pages = max(1, -(-total // PAGE_SIZE))
        state = replace(state, page=min(state.page, pages - 1))
        export = replace(query, ids=state.selected) if state.selecting else query
        everybody = {} if query.owner else {"everybody": "1"}
        html = render(
            "gallery.html",
            images=gallery.search(replace(query, limit=PAGE_SIZE, offset=state.page * PAGE_SIZE)),
            total=total,
            pages=pages,
            state=state,
            filtered=self._filters.is_active(values),
            export_params={**to_query_params(export), **everybody},
            formats=IMAGE_FORMATS,
        )
        return {self._grid: html, self._state: state, self._last_rendered: hash(html), self._detail: ""}


def render_detail(image: GeneratedImage, owner: str) -> str:
    """The detail view: the image, its settings and the actions that this owner may use."""
    is_own = image.owner == owner
    rows = detail_rows(image)
    if not is_own:
        rows.insert(0, (gettext("Owner"), image.owner))
    return render("image_detail.html", image=image, rows=rows, formats=IMAGE_FORMATS, own=is_own)


def detail_rows(image: GeneratedImage) -> list[tuple[str, object]]:
    """Labels and values of all settings of an image that are set."""
    request = image.request
    time = gettext(
        "{time} on {device}, {dtype}",
        time=format_duration(image.generation_time),
        device=image.device,
        dtype=image.dtype,
    )
    rows: list[tuple[str, object]] = [
        ("Sent to the model", "" if image.enhanced_prompt == request.prompt else image.enhanced_prompt),
        ("Negative prompt", request.negative_prompt),
        ("Model", request.model_key),
        ("Revision", image.model_revision[:12]),
        ("Engine", ENGINES.get(image.engine, image.engine)),
        ("Style", "" if request.style == "none" else gettext(request.style)),
        ("Size", f"{request.width} × {request.height}"),
        ("Task", "" if request.task == "text_to_image" else gettext(request.task.replace("_", " "))),
        ("Strength", request.strength),
        ("Seed", request.seed),
        ("Preset", gettext(request.preset)),
        ("Steps", request.num_inference_steps),
        ("Guidance", request.guidance_scale),
        ("Scheduler", request.scheduler),
        ("Time", time),
        ("File", f"{request.image_format.upper()}, {format_bytes(image.file_size)}"),
        ("Source", gettext(CLIENT_LABELS.get(image.client, ""))),
        ("Created", image.created_at.astimezone().strftime("%Y-%m-%d %H:%M")),
    ]
    return [(gettext(label), value) for label, value in rows if value not in ("", None)]
