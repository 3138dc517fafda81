"""The tab of all pictures: a grid from the database, one picture with all that is known of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.request import GeneratedImage
from canvas.ui.create import Create
from canvas.ui.events import listen
from canvas.ui.owner import owner_of
from canvas.ui.panel import panel, render

if TYPE_CHECKING:
    from canvas.studio import Studio

PAGE = 48  # pictures a page


class GalleryTab:
    """Layout and behaviour of the tab."""

    def __init__(self, studio: Studio, create: Create) -> None:
        self._studio = studio
        self._create = create
        self._count = gr.State(PAGE)
        self._grid = panel("gallery")
        self._open = panel("opened")

    def wire(self, tab: gr.Tab, tabs: gr.Tabs) -> None:
        """Connect what was laid out; call inside the page's context."""
        form = self._create.controls
        self._tabs = tabs
        listen(tab.select, self.show, self._count, [self._grid, self._open])
        listen(self._grid.click, self.browse, self._count, [self._grid, self._open, self._count])
        listen(self._open.click, self.act, None, form.widgets | {self._open, tabs})

    def show(self, count: int, request: gr.Request) -> tuple[str, str]:
        """The grid, with nothing opened."""
        return self._html(count, owner_of(request)), ""

    def browse(self, count: int, event: gr.EventData, request: gr.Request) -> tuple[Any, Any, int]:
        """A click on a picture, or on more."""
        owner = owner_of(request)
        if event.action == "more":
            count += PAGE
            return self._html(count, owner), gr.skip(), count
        image = self._studio.image(int(event.image), owner)
        return gr.skip(), self._picture(image, owner), count

    def act(self, event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        """A button under the opened picture."""
        if event.action == "use":
            image = self._studio.image(int(event.image), owner_of(request))
            filled = self._create.controls.fill(image.request)
            return {**filled, self._open: "", self._tabs: gr.Tabs(selected="create")}
        return {self._open: ""}

    def _html(self, count: int, owner: str) -> str:
        images = self._studio.recent(owner, count + 1, 0)
        return render("gallery.html", images=images[:count], more=len(images) > count)

    def _picture(self, image: GeneratedImage, owner: str) -> str:
        return render("opened.html", image=image, rows=rows_of(image))


def rows_of(image: GeneratedImage) -> list[tuple[str, object]]:
    """Every setting of a picture with its name, as a table shows them."""
    request = image.request
    sent = image.enhanced_prompt
    rows: list[tuple[str, object]] = [
        ("Sent to the model", "" if sent == request.prompt else sent),
        ("Negative prompt", request.negative_prompt),
        ("Model", request.model_key),
        ("Revision", image.model_revision[:12]),
        ("Style", "" if request.style == "none" else request.style),
        ("Size", f"{request.width} × {request.height}"),
        ("Seed", request.seed),
        ("Steps", request.num_inference_steps),
        ("Guidance", request.guidance_scale),
        ("Scheduler", request.scheduler),
        ("Time", f"{image.generation_time:.1f} s on {image.device}, {image.dtype}"),
        ("File", f"{image.filename} ({image.file_size / 1000:.0f} kB)"),
        ("Made", image.created_at.astimezone().strftime("%Y-%m-%d %H:%M")),
    ]
    return [(name, value) for name, value in rows if value not in ("", None)]
