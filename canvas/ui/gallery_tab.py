"""The Gallery tab: filters, grid, selection, detail view, import and export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr

from canvas import validation
from canvas.history.images import UserGallery
from canvas.history.queries import SORTS, Query, from_query_params, parse_datetime, to_query_params
from canvas.request import IMAGE_FORMATS, TASKS, GeneratedImage
from canvas.studio import Studio
from canvas.styles import STYLES
from canvas.ui.create_tab import CreateTab
from canvas.ui.edit_tab import EditTab
from canvas.ui.events import bind, current_owner, run_while_selected, toast_html
from canvas.ui.html_panel import panel, render
from canvas.ui.i18n import format_bytes, format_duration, gettext, ngettext
from canvas.ui.result_panel import OPENING_ACTIONS, ImageActions

PAGE_SIZE = 48  # images
POLL_INTERVAL = 4.0  # seconds between checks for images that other programs made
MAX_COMPARE = 6  # images side by side
MAX_SELECTED = 1000  # "Select all" selects so many; the address of an export names them
DAYS = {"any time": 0, "last day": 1, "last week": 7, "last month": 30, "last year": 365}
CUSTOM_RANGE = "custom range"
OWNER_CHOICES = ("mine", "all users")
ENGINES = {"torch": "PyTorch", "openvino": "OpenVINO", "openvino int8": "OpenVINO, int8"}
CLIENT_LABELS = {
    "page": "Web page",
    "gradio": "Gradio API",
    "mcp": "MCP",
    "openai": "OpenAI API",
    "sdapi": "AUTOMATIC1111 API",
    "python": "Python",
    "cli": "Command line",
}


class GalleryFilters:
    """Search, filters and order; the administrator can also choose the owner."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        # On a phone only: the filters are folded away there
        self._show_filters = gr.Button("Filters", size="sm", elem_id="filters-button")
        with gr.Row(elem_id="filters"):
            self._text = gr.Textbox(
                label="Search", placeholder='fox "in the snow" -night', min_width=220, scale=3, elem_id="search"
            )
            self._sort = self._choice("Sort", list(SORTS))
            self._favourites = gr.Checkbox(label="Favourites only", min_width=150, scale=1)
            self._model = self._choice("Model", [("all", ""), *studio.models])
            self._style = self._choice("Style", [("all", ""), *STYLES])
            tasks = [(task.replace("_", " "), task) for task in TASKS]
            self._task = self._choice("Task", [("all", ""), *tasks])
            self._size = self._choice("Size", [("all", "")])
            self._created = self._choice("Created", [*DAYS, CUSTOM_RANGE])
            self._since, self._until = self._day("From"), self._day("Until")
            self._owner = self._choice("Owner", list(OWNER_CHOICES), visible=False)

    def _choice(self, label: str, choices: list[Any], *, visible: bool = True) -> gr.Dropdown:
        first = choices[0]
        value = first[1] if isinstance(first, tuple) else first
        return gr.Dropdown(choices, value=value, label=label, min_width=120, scale=1, visible=visible)

    def _day(self, label: str) -> gr.DateTime:
        return gr.DateTime(label=label, include_time=False, type="string", min_width=130, scale=1, visible=False)

    @property
    def widgets(self) -> set[Any]:
        return {self._text, self._favourites, self._since, self._until, *self._choices}

    @property
    def _choices(self) -> tuple[gr.Dropdown, ...]:
        return (self._model, self._style, self._task, self._size, self._created, self._sort, self._owner)

    @property
    def changes(self) -> list[Any]:
        inputs = [choice.input for choice in self._choices]
        days = [self._since.change, self._until.change]
        return [self._text.change, self._favourites.input, *days, *inputs]

    def bind_events(self) -> None:
        bind(self._show_filters.click, None, js="() => magicCanvas.toggleFilters()")
        bind(
            self._created.change,
            lambda created: [gr.update(visible=created == CUSTOM_RANGE)] * 2,
            self._created,
            [self._since, self._until],
        )

    @property
    def choice_outputs(self) -> set[Any]:
        return {self._model, self._size, self._owner}

    def update_choices(self, gallery: UserGallery) -> dict[Any, Any]:
        """Offer the models and sizes that exist and, to the administrator, the images of all users."""
        sizes = gallery.sizes(Query())
        choices = [(f"{width} × {height}", f"{width}x{height}") for width, height in sizes]
        return {
            self._model: gr.update(choices=[(gettext("all"), ""), *((key, key) for key in self._studio.models)]),
            self._size: gr.update(choices=[(gettext("all"), ""), *choices]),
            self._owner: gr.update(visible=gallery.sees_all),
        }

    def is_active(self, values: Mapping[Any, Any]) -> bool:
        filters = (self._text, self._model, self._style, self._task, self._size, self._favourites)
        return any(values[widget] for widget in filters) or values[self._created] != next(iter(DAYS))

    def query(self, values: Mapping[Any, Any], owner: str) -> Query:
        """The query of the filters, over this owner's images or those of all users."""
        created = validation.choice("created", values[self._created], [*DAYS, CUSTOM_RANGE])
        since = until = None
        if created == CUSTOM_RANGE:
            since = _parse_day("from", values[self._since])
            until = _parse_day("until", values[self._until])
        elif DAYS[created]:
            since = datetime.now(UTC) - timedelta(days=DAYS[created])
        return Query(
            text=values[self._text],
            owner=None if values[self._owner] == OWNER_CHOICES[1] else owner,
            model_key=values[self._model] or None,
            style=values[self._style] or None,
            task=values[self._task] or None,
            size=from_query_params({"size": values[self._size] or ""}).size,
            since=since,
            until=until and until + timedelta(days=1),  # including that day
            favourite=True if values[self._favourites] else None,
            sort=values[self._sort],
        )


def _parse_day(field: str, text: str | None) -> datetime | None:
    return parse_datetime(field, text.strip()) if text and text.strip() else None


@dataclass(frozen=True)
class GalleryState:
    """What one visitor sees: the page, the selection, and the deletion that can be undone.

    `anchor`: the image that was selected last, where a range begins. `version` counts the changes, each of
    which renders the grid again.
    """

    page: int = 0
    selecting: bool = False
    selected: tuple[int, ...] = ()
    anchor: int = 0
    undo: str = ""  # token
    deleted: int = 0  # number of images
    version: int = 0

    def change(self, **changes: Any) -> GalleryState:
        """The state with these changes."""
        return replace(self, **changes, version=self.version + 1)

    def reset(self, **values: Any) -> GalleryState:
        """The initial state with these values."""
        return GalleryState(**values, version=self.version + 1)


class GalleryTab:
    """Layout and callbacks of the tab."""

    def __init__(self, studio: Studio, create: CreateTab, edit: EditTab, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._tabs = tabs
        self._create = create
        self._actions = ImageActions(studio, create, edit, tabs)
        self._state = gr.State(GalleryState())
        self._last_rendered = gr.State(0)  # hash of the grid
        self._timer = gr.Timer(POLL_INTERVAL, active=False)
        self._filters = GalleryFilters(studio)
        self._grid = panel("gallery")
        self._import = gr.UploadButton(
            "Import images or a ZIP", file_types=["image", ".zip"], file_count="multiple", size="sm", elem_id="import"
        )
        self._detail = panel("image-detail")
        self._drop_question = panel("drop-question")  # see page.js

    def bind_events(self, tab: gr.Tab, all_tabs: Sequence[gr.Tab]) -> None:
        inputs = self._filters.widgets | {self._state}
        outputs = {self._detail, self._state}
        self._filters.bind_events()
        bind(tab.select, self.show, None, self._filters.choice_outputs | {self._drop_question})
        run_while_selected(self._timer, tab, all_tabs)
        # Only this event writes the grid: the answers of several could arrive in the wrong order
        bind(
            [tab.select, self._timer.tick, self._state.change],
            self.poll,
            inputs | {self._last_rendered},
            {self._grid, self._last_rendered},
            trigger_mode="always_last",
            queue=False,
        )
        bind(self._filters.changes, self.show_first_page, {self._state}, outputs, trigger_mode="always_last")
        all_outputs = outputs | self._actions.outputs
        bind([self._grid.click, self._detail.click], self.on_click, inputs, all_outputs, **self._actions.options)
        upload = {self._import}
        bind(self._import.upload, self.import_files, {self._state} | upload, outputs | upload)

    def _gallery(self, http_request: gr.Request) -> UserGallery:
        return self._studio.user_gallery(current_owner(http_request))

    def show(self, http_request: gr.Request) -> dict[Any, Any]:
        choices = self._filters.update_choices(self._gallery(http_request))
        return {**choices, self._drop_question: render("drop_question.html")}

    def poll(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Update the grid if it has changed, also by another page or program."""
        html = self._render(values, self._gallery(http_request))
        if hash(html) == values[self._last_rendered]:
            return {self._last_rendered: gr.skip()}
        return {self._grid: html, self._last_rendered: hash(html)}

    def show_first_page(self, values: dict[Any, Any]) -> dict[Any, Any]:
        return {self._state: values[self._state].reset()}

    def on_click(self, values: dict[Any, Any], event: gr.EventData, http_request: gr.Request) -> dict[Any, Any]:
        """An action of the grid or the detail view."""
        gallery, state = self._gallery(http_request), values[self._state]
        if event.action == "open" and not getattr(event, "shift", False):
            return self._open(values, state, gallery, int(event.image))
        if event.action in ("open", "page", "toggle", "select", "select_all", "unselect"):
            return {self._state: self._navigate(values, event, gallery), self._detail: ""}
        if event.action in ("favourite", "delete", "undo"):
            return self._mutate(values, state, event, gallery)
        if event.action in OPENING_ACTIONS:
            return {self._detail: "", **self._actions.open(event, gallery.owner)}
        if event.action == "create":
            return {self._detail: "", self._tabs: gr.Tabs(selected="create")}
        detail: Any = ""
        if event.action == "compare":
            images = [gallery.image(image_id) for image_id in state.selected[:MAX_COMPARE]]
            detail = render("compare_dialog.html", images=images)
        elif event.action == "exported":
            self._confirm_export(values, gallery)
            detail = gr.skip()
        return {self._detail: detail}

    def import_files(self, values: dict[Any, Any], http_request: gr.Request) -> dict[Any, Any]:
        """Import uploaded images and the images of uploaded ZIPs; report what was imported and what failed."""
        gallery, uploads = self._gallery(http_request), values[self._import]
        with ExitStack() as taken:
            paths = [
                taken.enter_context(self._studio.temp_files.take(upload, gallery.owner))
                for upload in (uploads if isinstance(uploads, list) else [uploads])
            ]
            result = gallery.import_files(paths)
        text = gettext("{new} imported, {known} already in the gallery.", new=result.added, known=result.duplicates)
        gr.Info(toast_html(gettext("Import finished"), " ".join([text, *result.errors[:5]])))
        return {self._state: values[self._state].reset()}

    def _navigate(self, values: dict[Any, Any], event: gr.EventData, gallery: UserGallery) -> GalleryState:
        """The state after another page or selection was chosen."""
        state: GalleryState = values[self._state]
        if event.action == "page":
            return state.change(page=max(0, int(event.page)))
        if event.action == "select_all":
            query = self._filters.query(values, gallery.owner)
            return state.change(selected=tuple(gallery.ids(query)[:MAX_SELECTED]))
        if event.action not in ("open", "toggle"):
            return state.reset(page=state.page, selecting=event.action == "select")
        image_id = gallery.image(int(event.image)).id or 0
        state = state.change(selecting=True, anchor=image_id)
        if getattr(event, "shift", False) and values[self._state].anchor:
            between = self._range(values, gallery, values[self._state].anchor, image_id)
            return replace(state, selected=tuple(dict.fromkeys([*state.selected, *between])))
        others = tuple(other for other in state.selected if other != image_id)
        return replace(state, selected=others if image_id in state.selected else (*others, image_id))

    def _range(self, values: dict[Any, Any], gallery: UserGallery, first: int, last: int) -> list[int]:
        """The images of the page from one to another; the last one alone if the first is on another page."""
        ids = [image.id or 0 for image in self._page_of(values, gallery, values[self._state].page)]
        if first not in ids or last not in ids:
            return [last]
        start, end = sorted((ids.index(first), ids.index(last)))
        return ids[start : end + 1]

    def _page_of(
        self, values: dict[Any, Any], gallery: UserGallery, page: int, *, around: int = 0
    ) -> list[GeneratedImage]:
        """The images of a page, with so many `around` it."""
        start = max(0, page * PAGE_SIZE - around)
        limit = (page + 1) * PAGE_SIZE + around - start
        return gallery.search(replace(self._filters.query(values, gallery.owner), limit=limit, offset=start))

    def _open(self, values: dict[Any, Any], state: GalleryState, gallery: UserGallery, image_id: int) -> dict[Any, Any]:
        """Show an image in the detail view, and in the grid the page that has it."""
        image = gallery.image(image_id)
        window = [each.id for each in self._page_of(values, gallery, state.page, around=1)]
        updates: dict[Any, Any] = {}
        if image_id in window:
            page = (max(0, state.page * PAGE_SIZE - 1) + window.index(image_id)) // PAGE_SIZE
            if page != state.page:
                updates = {self._state: state.change(page=page)}
                window = [each.id for each in self._page_of(values, gallery, page, around=1)]
        return {**updates, self._detail: render_detail(image, gallery.owner, window)}

    def _confirm_export(self, values: dict[Any, Any], gallery: UserGallery) -> None:
        state = values[self._state]
        number = len(state.selected) if state.selecting else gallery.count(self._filters.query(values, gallery.owner))
        text = ngettext(
            "{number} image as a ZIP, in the downloads of your browser.",
            "{number} images as a ZIP, in the downloads of your browser.",
            number,
        )
        gr.Info(toast_html(gettext("Export started"), text))

    def _mutate(
        self, values: dict[Any, Any], state: GalleryState, event: gr.EventData, gallery: UserGallery
    ) -> dict[Any, Any]:
        ids = [int(event.image)] if hasattr(event, "image") else list(state.selected)
        if event.action == "favourite":
            gallery.favourite(ids, event.favourite == "true")
            updates = {self._state: state.change()}
            if hasattr(event, "image") and getattr(event, "from", "") != "tile":
                updates |= self._open(values, state.change(), gallery, ids[0])
            return updates
        if event.action == "delete":
            token, number = gallery.delete(ids)
            return {self._state: state.reset(page=state.page, undo=token, deleted=number), self._detail: ""}
        gallery.undo(state.undo)
        return {self._state: state.reset(page=state.page), self._detail: ""}

    def _render(self, values: dict[Any, Any], gallery: UserGallery) -> str:
        query, state = self._filters.query(values, gallery.owner), values[self._state]
        total = gallery.count(query)
        pages = max(1, -(-total // PAGE_SIZE))
        state = replace(state, page=min(state.page, pages - 1))
        export = replace(query, ids=state.selected) if state.selecting else query
        everybody = {} if query.owner else {"everybody": "1"}
        return render(
            "gallery.html",
            images=self._page_of(values, gallery, state.page),
            owner=gallery.owner,
            total=total,
            max_selected=MAX_SELECTED,
            pages=pages,
            state=state,
            filtered=self._filters.is_active(values),
            export_params={**to_query_params(export), **everybody},
            formats=IMAGE_FORMATS,
        )


def render_detail(image: GeneratedImage, owner: str, ids: Sequence[int | None] = ()) -> str:
    """The detail view: the image, its settings and the actions that this owner may use.

    `ids`: the images of the grid in their order, among which the arrow keys move.
    """
    is_own = image.owner == owner
    rows = detail_rows(image)
    if not is_own:
        rows.insert(0, (gettext("Owner"), image.owner))
    index = ids.index(image.id) if image.id in ids else None
    return render(
        "image_detail.html",
        image=image,
        rows=rows,
        formats=IMAGE_FORMATS,
        own=is_own,
        previous=ids[index - 1] if index else None,
        following=ids[index + 1] if index is not None and index + 1 < len(ids) else None,
    )


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
