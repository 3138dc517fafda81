"""The tab of all pictures: search, a page of small ones, a selection, one opened."""

from __future__ import annotations

import html
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import gradio as gr

from canvas.history.imports import import_zip
from canvas.history.queries import Query
from canvas.ui.create import Create
from canvas.ui.edit import Edit
from canvas.ui.events import listen
from canvas.ui.filters import Filters
from canvas.ui.opened import opened
from canvas.ui.owner import owner_of
from canvas.ui.panel import panel, render

if TYPE_CHECKING:
    from canvas.studio import Studio

PAGE = 48  # pictures a page
VARIATIONS = 4
EDITS = {"edit": "Repaint", "enlarge": "Enlarge"}
COMPARED = 6  # pictures side by side at most


@dataclass(frozen=True)
class Look:
    """What one visitor looks at: the page, what is selected, what can be brought back."""

    page: int = 0
    selecting: bool = False
    selected: tuple[int, ...] = ()
    undo: str = ""
    deleted: int = 0


class GalleryTab:
    """Layout and behaviour of the tab."""

    def __init__(self, studio: Studio, create: Create, edit: Edit, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._create = create
        self._edit = edit
        self._tabs = tabs
        self._look = gr.State(Look())
        self._filters = Filters(studio)
        self._grid = panel("gallery")
        self._import = gr.UploadButton(
            "Import a ZIP", file_types=[".zip"], size="sm", elem_id="import"
        )
        self._opened = panel("opened")

    def wire(self, tab: gr.Tab) -> None:
        """Connect what was laid out; call inside the page's context."""
        asked = self._filters.widgets | {self._look}
        shown = {self._grid, self._opened, self._look}
        listen(tab.select, self.show, asked, shown)
        listen(
            self._filters.changes,
            self.show_first,
            asked,
            shown,
            trigger_mode="always_last",
        )
        listen(self._grid.click, self.act, asked, shown)
        form = self._create.controls.widgets | {self._create.selected}
        everywhere = shown | form | self._edit.filled | {self._tabs}
        listen(self._opened.click, self.act, asked, everywhere)
        listen(self._import.upload, self.take_in, asked | {self._import}, shown | {self._import})

    def show(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The grid as it is now, with nothing opened."""
        return self._shown(values, values[self._look], owner_of(request))

    def show_first(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The first page of what the filters ask for."""
        return self._shown(values, Look(), owner_of(request))

    def act(
        self, values: dict[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """A click in the grid or on the opened picture."""
        owner, look = owner_of(request), values[self._look]
        if event.action in ("page", "toggle", "select", "unselect"):
            return self._shown(values, self._moved(look, event, owner), owner)
        if event.action in ("favourite", "delete", "undo"):
            return self._changed(values, look, event, owner)
        if event.action == "compare":
            images = [self._studio.image(one, owner) for one in look.selected[:COMPARED]]
            return {self._opened: render("compare.html", images=images)}
        if event.action in ("use", "variations", *EDITS):
            return self._to_other_tab(event, owner)
        if event.action == "open":
            image = self._studio.image(int(event.image), owner)
            return {self._opened: opened(image)}
        return {self._opened: ""}

    def take_in(self, values: dict[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """Take the pictures of a ZIP into the gallery; tells what was there and what was not."""
        studio, owner, path = self._studio, owner_of(request), Path(values[self._import])
        try:
            done = import_zip(studio.store, studio.gallery.folder, path, owner)
        finally:
            path.unlink(missing_ok=True)  # Gradio's copy of the upload: it has been read
        said = f"{done.added} new, {done.duplicates} known already. " + " ".join(done.refused[:5])
        gr.Info(html.escape(said), title="Imported")
        return self._shown(values, Look(), owner)

    def _moved(self, look: Look, event: gr.EventData, owner: str) -> Look:
        if event.action == "page":
            return replace(look, page=max(0, int(event.page)))
        if event.action == "toggle":
            one = self._studio.image(int(event.image), owner).id or 0
            rest = tuple(other for other in look.selected if other != one)
            return replace(look, selected=rest if one in look.selected else (*rest, one))
        return Look(page=look.page, selecting=event.action == "select")

    def _changed(
        self, values: dict[Any, Any], look: Look, event: gr.EventData, owner: str
    ) -> dict[Any, Any]:
        ids = [int(event.image)] if hasattr(event, "image") else list(look.selected)
        if event.action == "favourite":
            marked = event.mark == "true"
            self._studio.store.set_favourite(ids, owner, marked)
            shown = self._shown(values, look, owner)
            if hasattr(event, "image"):
                image = self._studio.image(ids[0], owner)
                shown[self._opened] = opened(image)
            return shown
        if event.action == "delete":
            token, number = self._studio.gallery.delete(ids, owner)
            return self._shown(values, Look(look.page, undo=token, deleted=number), owner)
        self._studio.gallery.undo(look.undo, owner)
        return self._shown(values, Look(look.page), owner)

    def _to_other_tab(self, event: gr.EventData, owner: str) -> dict[Any, Any]:
        image = self._studio.image(int(event.image), owner)
        away: dict[Any, Any] = {self._opened: "", self._tabs: gr.Tabs(selected="create")}
        if event.action in EDITS:
            away[self._tabs] = gr.Tabs(selected="edit")
            return {**self._edit.fill(int(event.image), owner, EDITS[event.action]), **away}
        if event.action == "use":
            return {**self._create.controls.fill(image.request), **away}
        around = replace(image.request, seed=image.request.seed + 1, num_images=VARIATIONS)
        self._studio.submit(around, owner)
        return {self._create.selected: None, **away}

    def _shown(self, values: dict[Any, Any], look: Look, owner: str) -> dict[Any, Any]:
        query = self._filters.query(values, owner)
        store = self._studio.store
        total = store.count(query)
        pages = max(1, -(-total // PAGE))
        look = replace(look, page=min(look.page, pages - 1))
        images = store.search(replace(query, limit=PAGE, offset=look.page * PAGE))
        html = render(
            "gallery.html",
            images=images,
            total=total,
            pages=pages,
            look=look,
            filtered=self._filters.any(values),
            export=self._export(look, query),
        )
        return {self._grid: html, self._look: look, self._opened: ""}

    def _export(self, look: Look, query: Query) -> str:
        if look.selecting:
            return "export.zip?" + urlencode({"ids": ",".join(map(str, look.selected))})
        asked = {
            "text": query.text,
            "model_key": query.model_key or "",
            "style": query.style or "",
            "favourite": "1" if query.favourite else "",
        }
        return "export.zip?" + urlencode({name: value for name, value in asked.items() if value})
