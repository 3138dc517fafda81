"""The tab where pictures are changed: redrawn, repainted under a mask, extended, enlarged."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.errors import CanvasError
from canvas.jobs import Job
from canvas.request import GenerationRequest
from canvas.ui.edit_form import GROUPS, STRENGTHS, EditForm
from canvas.ui.events import in_words, listen
from canvas.ui.languages import gettext, sentence_of
from canvas.ui.owner import owner_of
from canvas.ui.panel import panel, render
from canvas.ui.stage import data_url, making, pictures, strip

if TYPE_CHECKING:
    from PIL import Image

    from canvas.studio import Studio

PAINTS = ("#ff2bd6", "#19e6ff", "#ffe600")  # to tell the paint from any picture


class Edit:
    """Layout and behaviour of the tab; `source` is the kept picture that it was last given."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._source = gr.State("")
        self._job = gr.State("")  # the id of the one that is shown
        with gr.Row(elem_id="edit-desk"):
            with gr.Column(elem_id="edit-before"):
                self._editor = gr.ImageEditor(
                    type="pil",
                    format="png",
                    label="Picture; paint over what is to be repainted",
                    elem_id="edit-picture",
                    sources=("upload", "clipboard", "webcam"),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(colors=list(PAINTS), color_mode="fixed"),
                )
                self._told = panel("edit-told")
                self._strip = panel("edit-strip")
            with gr.Column(elem_id="edit-form"):
                self._form = EditForm(studio)
                self._make = gr.Button("Make", variant="primary", elem_id="edit-make")
                self._stop = gr.Button("Stop", elem_id="edit-stop", visible=False)
            with gr.Column(elem_id="edit-after"):
                self._result = panel("edit-result")

    def wire(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Connect what was laid out; call inside the page's context."""
        inputs = {self._editor, self._source, *self._form.widgets}
        listen(tab.select, self.show, {self._source}, {self._strip, self._told})
        listen(self._strip.click, self.pick, {self._source}, self.filled)
        listen(self._result.click, self.act, {self._source}, self.filled | {self._result})
        listen(self._stop.click, self.stop, {self._job})
        self._form.wire(page)
        fitting = [self._form[name].change for name in ("shape", "fit", "background", "what")]
        listen(
            [
                *fitting,
                self._form["model_key"].change,
                self._editor.upload,
                self._editor.clear,
                self._source.change,
            ],
            self.preview,
            inputs,
            {self._form.fitted},
            trigger_mode="always_last",
        )
        gr.on(  # not through `listen`, whose wrapper hides that this is a generator
            self._make.click,
            self.make,
            inputs,
            {self._result, self._strip, self._job, self._make, self._stop},
            api_visibility="private",
            show_progress="hidden",
            concurrency_limit=None,
        )

    def preview(self, values: Mapping[Any, Any]) -> dict[Any, Any]:
        """The picture as the model will get it."""
        picture = (values[self._editor] or {}).get("background")
        given = self._form.read(values)
        if picture is None or given["what"] not in GROUPS["fitting"]:
            return {self._form.fitted: ""}
        try:
            wish = self._form.asked(given | {"prompt": "a picture"}, "picture.png", picture.size)
            fitted = self._studio.shelf.fitted(picture, wish)
        except CanvasError as error:
            return {self._form.fitted: render("line.html", words=sentence_of(error), kind="wrong")}
        shown = render(
            "fit.html",
            picture=data_url(fitted),
            width=fitted.width,
            height=fitted.height,
            words=_fit_words(picture.size, fitted.size, wish.fit),
        )
        return {self._form.fitted: shown}

    def show(self, _: Mapping[Any, Any], request: gr.Request) -> dict[Any, Any]:
        """The owner's latest pictures, to pick one; and what the page may say of a file."""
        latest = strip(self._studio, owner_of(request), None)
        return {self._strip: latest, self._told: render("edit_told.html")}

    def pick(
        self, _: Mapping[Any, Any], event: gr.EventData, request: gr.Request
    ) -> dict[Any, Any]:
        """Put a kept picture into the editor, with its prompt."""
        return self.fill(int(event.image), owner_of(request))

    def act(self, _: Mapping[Any, Any], event: gr.EventData, request: gr.Request) -> dict[Any, Any]:
        """A click on what was made: look at one of several, or go on with it."""
        owner = owner_of(request)
        if event.action == "pick":
            return self.fill(int(event.image), owner)
        one = self._studio.image(int(event.image), owner)
        return {self._result: pictures([one], in_editor=True)}

    def stop(self, values: Mapping[Any, Any], request: gr.Request) -> None:
        """End the job that is shown."""
        if values[self._job]:
            self._studio.job(values[self._job], owner_of(request)).cancel()

    @property
    def filled(self) -> set[Any]:
        """The components that `fill` updates."""
        names = ("prompt", "what", "strength")
        return {self._editor, self._source, *(self._form[name] for name in names)}

    def fill(self, image_id: int, owner: str, what: str | None = None) -> dict[Any, Any]:
        """Updates that put a kept picture into the editor; raises NotFound for another's.

        `what` is to be done with it; None leaves that as it is.
        """
        image = self._studio.image(image_id, owner)
        picture = self._studio.shelf.picture(image.filename, owner)
        return {
            self._editor: {"background": picture, "layers": [], "composite": None},
            self._source: image.filename,
            self._form["prompt"]: image.request.prompt,
            self._form["what"]: what or gr.skip(),
            self._form["strength"]: STRENGTHS[what] if what else gr.skip(),
        }

    def make(self, values: Mapping[Any, Any], request: gr.Request) -> Iterator[dict[Any, Any]]:
        """Queue what is asked for and show it until it is done; the job outlives the tab."""
        owner = owner_of(request)
        job = in_words(self._submit)(values, owner)
        for state in job.watch():
            if not state.finished:
                shown = making(self._studio, state)
                yield {self._result: shown, self._job: job.id, **self._buttons(works=True)}
        shown = pictures(job.images, in_editor=True) if job.images else ""
        made = strip(self._studio, owner, None)
        yield {self._result: shown, self._strip: made, **self._buttons(works=False)}
        if job.status == "failed":
            in_words(job.wait)()  # says why

    def _buttons(self, *, works: bool) -> dict[Any, Any]:
        return {self._make: gr.Button(visible=not works), self._stop: gr.Button(visible=works)}

    def _submit(self, values: Mapping[Any, Any], owner: str) -> Job:
        return self._studio.submit(self._wish(values, owner), owner, "page")

    def _wish(self, values: Mapping[Any, Any], owner: str) -> GenerationRequest:
        given = self._form.read(values)
        if given["what"] == "Other seeds":
            return self._other_seeds(given, values[self._source], owner)
        edited = values[self._editor] or {}
        background = edited.get("background")
        if background is None:
            raise CanvasError(
                gettext(
                    "Choose a picture first: drop one into the editor, or pick one of yours "
                    "below it."
                )
            )
        source = self._named(background, values[self._source], owner)
        wish = self._form.asked(given, source, background.size)
        if given["what"] != "Repaint":
            return wish
        mask = self._mask(edited.get("layers") or [], background)
        return replace(wish, mask_image=mask)

    def _other_seeds(self, given: Mapping[str, Any], source: str, owner: str) -> GenerationRequest:
        """The picked picture's own request, on the way from its seed to others."""
        kept = self._studio.shelf.kept(source, owner)
        if kept is None or kept.task != "text_to_image":
            raise CanvasError(
                gettext(
                    "Pick a picture of yours below the editor first, one that was made from words "
                    "alone."
                )
            )
        return replace(
            kept.request,
            prompt=given["prompt"],
            variation_seed=random.randrange(2**32),
            variation_strength=given["strength"],
            num_images=int(given["num_images"]),
        )

    def _named(self, background: Image.Image, source: str, owner: str) -> str:
        """The kept picture's own name while the editor still shows it, else that of a new one."""
        if source:
            kept = self._studio.shelf.picture(source, owner).convert("RGB")
            if (
                background.size == kept.size
                and background.convert("RGB").tobytes() == kept.tobytes()
            ):
                return source
        return self._studio.shelf.hand_in(background).name

    def _mask(self, layers: list[Image.Image], background: Image.Image) -> str:
        from PIL import Image, ImageChops

        mask = Image.new("L", background.size)
        for layer in layers:
            if layer.size == mask.size:
                mask = ImageChops.lighter(mask, layer.getchannel("A"))
        if mask.getbbox() is None:
            raise CanvasError(
                gettext("Paint over what is to be repainted first, with the brush of the editor.")
            )
        return self._studio.shelf.hand_in(mask, "mask_image").name


def _fit_words(before: tuple[int, int], after: tuple[int, int], fit: str) -> str:
    sizes = {"size": "{} × {}".format(*after), "whole": "{} × {}".format(*before)}
    if before[0] * after[1] == before[1] * after[0]:
        return gettext("{size} of {whole}", **sizes)
    return {
        "crop": gettext("{size} of {whole}, cut", **sizes),
        "pad": gettext("{size} of {whole}, filled up", **sizes),
        "stretch": gettext("{size} of {whole}, stretched", **sizes),
    }[fit]
