"""The tab of all pictures: search, a page of small ones, a selection, one opened."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.formatting import format_bytes, format_duration
from canvas.history.queries import to_query_params
from canvas.request import IMAGE_FORMATS, RANDOM_SEED, GeneratedImage
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.events import bind, current_owner, toast_html
from canvas.ui.gallery_filters import GalleryFilters
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import gettext

if TYPE_CHECKING:
    from canvas.history.images import UserGallery
    from canvas.studio import Studio

CLIENT_LABELS = {
    "page": "this page",
    "gradio": "a script (Gradio)",
    "mcp": "an agent (MCP)",
    "openai": "an OpenAI client",
    "sdapi": "an AUTOMATIC1111 client",
    "python": "Python",
    "cli": "the command line",
}


def render_detail(image: GeneratedImage, owner: str) -> str:
    """The picture, its settings and what this owner can do with it."""
    mine = image.owner == owner
    rows = detail_rows(image) if mine else [("Whose", image.owner), *detail_rows(image)]
    return render("opened.html", image=image, rows=rows, formats=IMAGE_FORMATS, mine=mine)


def detail_rows(image: GeneratedImage) -> list[tuple[str, object]]:
    """Every setting of a picture with its name; what says nothing is left out."""
    request = image.request
    sent = image.enhanced_prompt
    task = "" if request.task == "text_to_image" else gettext(request.task.replace("_", " "))
    rows: list[tuple[str, object]] = [
        ("Sent to the model", "" if sent == request.prompt else sent),
        ("Negative prompt", request.negative_prompt),
        ("Model", request.model_key),
        ("Revision", image.model_revision[:12]),
        ("Style", "" if request.style == "none" else gettext(request.style)),
        ("Size", f"{request.width} × {request.height}"),
        ("Task", task),
        ("Strength", request.strength),
        ("Seed", request.seed),
        ("Mode", gettext(request.preset)),
        ("Steps", request.num_inference_steps),
        ("Guidance", request.guidance_scale),
        ("Scheduler", request.scheduler),
        ("Time", _time(image)),
        ("File", f"{request.image_format.upper()}, {format_bytes(image.file_size)}"),
        ("Asked for by", gettext(CLIENT_LABELS.get(image.client, ""))),
        ("Made", image.created_at.astimezone().strftime("%Y-%m-%d %H:%M")),
    ]
    return [(gettext(name), value) for name, value in rows if value not in ("", None)]


def _time(image: GeneratedImage) -> str:
    return gettext(
        "{time} on {device}, {dtype}",
        time=format_duration(image.generation_time),
        device=image.device,
        dtype=image.dtype,
    )


PAGE = 48  # pictures a page
INTERVAL = 1.0  # seconds between two looks for pictures that programs made
VARIATIONS = 4
EDITS = {"edit": "Repaint", "enlarge": "Enlarge"}
MAX_COMPARE = 6  # pictures side by side at most


@dataclass(frozen=True)
class GalleryState:
    """What one visitor looks at: the page, what is selected, what can be brought back."""

    page: int = 0
    selecting: bool = False
    selected: tuple[int, ...] = ()
    undo: str = ""
    deleted: int = 0


class GalleryTab:
    """Layout and behaviour of the tab."""

    def __init__(self, studio: Studio, create: CreateTab, edit: EditTab, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._create = create
        self._edit = edit
        self._tabs = tabs
        self._look = gr.State(GalleryState())
        self._seen = gr.State(0)
        self._timer = gr.Timer(INTERVAL, active=False)
        self._filters = GalleryFilters(studio)
        self._grid = panel("gallery")
        self._import = gr.UploadButton(
            "Import a ZIP", file_types=[".zip"], size="sm", elem_id="import"
        )
        self._opened = panel("opened")

    def bind_events(self, tab: gr.Tab, others: list[gr.Tab]) -> None:
        """Connect what was laid out; call inside the page's context."""
        asked = self._filters.widgets | {self._look}
        shown = {self._grid, self._opened, self._look, self._seen}
        self._filters.bind_events()
        bind(tab.select, self.show, asked, shown | self._filters.choice_outputs)
        bind(tab.select, lambda: gr.Timer(active=True), None, self._timer)
        bind([other.select for other in others], lambda: gr.Timer(active=False), None, self._timer)
        fresh = {self._grid, self._seen}
        bind(self._timer.tick, self.poll, asked | {self._seen}, fresh, queue=False)
        bind(
            self._filters.changes,
            self.show_first,
            asked,
            shown,
            trigger_mode="always_last",
        )
        bind(self._grid.click, self.on_click, asked, shown | {self._tabs})
        form = self._create.controls.widgets | {self._create.selected}
        everywhere = shown | form | self._edit.load_image_outputs | {self._tabs}
        bind(self._opened.click, self.on_click, asked, everywhere)
        bind(self._import.upload, self.import_zip, asked | {self._import}, shown | {self._import})

    def show(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The grid as it is now, with nothing opened."""
        mine = self._studio.user_gallery(current_owner(request))
        offers = self._filters.update_choices(mine)
        return {**offers, **self._shown(values, values[self._look], mine)}

    def poll(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The grid where it has changed; what is opened stays open."""
        mine = self._studio.user_gallery(current_owner(request))
        shown = self._shown(values, values[self._look], mine)
        if shown[self._seen] == values[self._seen]:
            return {self._seen: gr.skip()}
        return {place: shown[place] for place in (self._grid, self._seen)}

    def show_first(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The first page of what the filters ask for."""
        return self._shown(
            values, GalleryState(), self._studio.user_gallery(current_owner(request))
        )

    def on_click(
        self, values: dict[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """A click in the grid or on the opened picture."""
        mine, look = self._studio.user_gallery(current_owner(request)), values[self._look]
        if event.action in ("page", "toggle", "select", "unselect"):
            return self._shown(values, self._moved(look, event, mine), mine)
        if event.action in ("favourite", "delete", "undo"):
            return self._changed(values, look, event, mine)
        if event.action == "compare":
            images = [mine.image(one) for one in look.selected[:MAX_COMPARE]]
            return {self._opened: render("compare.html", images=images)}
        if event.action in ("begin", "use", "again", "variations", *EDITS):
            return self._to_other_tab(event, mine)
        if event.action == "open":
            return {self._opened: render_detail(mine.image(int(event.image)), mine.owner)}
        return {self._opened: ""}

    def import_zip(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Take the pictures of a ZIP into the gallery; tells what was there and what was not."""
        mine, path = self._studio.user_gallery(current_owner(request)), Path(values[self._import])
        try:
            done = mine.import_zip(path)
        finally:
            path.unlink(missing_ok=True)  # Gradio's copy of the upload: it has been read
        counted = gettext(
            "{new} new, {known} known already.", new=done.added, known=done.duplicates
        )
        said = " ".join([counted, *done.refused[:5]])
        gr.Info(toast_html(gettext("Imported"), said))
        return self._shown(values, GalleryState(), mine)

    def _moved(self, look: GalleryState, event: gr.EventData, mine: UserGallery) -> GalleryState:
        if event.action == "page":
            return replace(look, page=max(0, int(event.page)))
        if event.action == "toggle":
            one = mine.image(int(event.image)).id or 0
            rest = tuple(other for other in look.selected if other != one)
            return replace(look, selected=rest if one in look.selected else (*rest, one))
        return GalleryState(page=look.page, selecting=event.action == "select")

    def _changed(
        self, values: dict[Any, Any], look: GalleryState, event: gr.EventData, mine: UserGallery
    ) -> dict[Any, Any]:
        ids = [int(event.image)] if hasattr(event, "image") else list(look.selected)
        if event.action == "favourite":
            mine.favourite(ids, event.mark == "true")
            shown = self._shown(values, look, mine)
            if hasattr(event, "image"):
                shown[self._opened] = render_detail(mine.image(ids[0]), mine.owner)
            return shown
        if event.action == "delete":
            token, number = mine.delete(ids)
            return self._shown(values, GalleryState(look.page, undo=token, deleted=number), mine)
        mine.undo(look.undo)
        return self._shown(values, GalleryState(look.page), mine)

    def _to_other_tab(self, event: gr.EventData, mine: UserGallery) -> dict[Any, Any]:
        away: dict[Any, Any] = {self._opened: "", self._tabs: gr.Tabs(selected="create")}
        if event.action == "begin":
            return away
        image = mine.image(int(event.image))
        if event.action in EDITS:
            away[self._tabs] = gr.Tabs(selected="edit")
            return {
                **self._edit.load_image(int(event.image), mine.owner, EDITS[event.action]),
                **away,
            }
        if event.action == "use":  # but another picture: with a new seed
            request = replace(image.request, seed=RANDOM_SEED)
            return {**self._create.controls.update_from_request(request), **away}
        if event.action == "again":
            return {**self._create.controls.update_from_request(image.request), **away}
        around = replace(image.request, seed=image.request.seed + 1, num_images=VARIATIONS)
        self._studio.submit(around, mine.owner, "page")
        return {self._create.selected: None, **away}

    def _shown(
        self, values: dict[Any, Any], look: GalleryState, mine: UserGallery
    ) -> dict[Any, Any]:
        query = self._filters.query(values, mine.owner)
        total = mine.count(query)
        pages = max(1, -(-total // PAGE))
        look = replace(look, page=min(look.page, pages - 1))
        wanted = replace(query, ids=look.selected) if look.selecting else query
        html = render(
            "gallery.html",
            images=mine.search(replace(query, limit=PAGE, offset=look.page * PAGE)),
            total=total,
            pages=pages,
            look=look,
            filtered=self._filters.is_active(values),
            wanted={**to_query_params(wanted), **({} if query.owner else {"everybody": "1"})},
            formats=IMAGE_FORMATS,
        )
        return {self._grid: html, self._look: look, self._seen: hash(html), self._opened: ""}
