"""The buttons of a generated image: open it in another tab, reuse it, mark it, delete it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas.history.queries import Query
from canvas.request import MAX_SEED, RANDOM_SEED, GeneratedImage, GenerationRequest
from canvas.studio import Studio
from canvas.ui.html_panel import render

if TYPE_CHECKING:
    from canvas.ui.create_tab import CreateTab
    from canvas.ui.edit_tab import EditTab

NUM_VARIATIONS = 4
EDIT_OPERATIONS = MappingProxyType({"edit": "inpaint", "upscale": "upscale"})  # of the Edit tab, by action
OPENING_ACTIONS = (*EDIT_OPERATIONS, "use_settings", "reuse_seed", "variations")
CHANGING_ACTIONS = ("favourite", "delete", "undo")


def variations_of(image: GeneratedImage) -> GenerationRequest:
    """The request for more images like this one, with the next seeds."""
    request = image.request
    if request.variation_seed is not None:
        return replace(request, variation_seed=request.variation_seed + 1, num_images=NUM_VARIATIONS)
    return replace(request, seed=min(request.seed, MAX_SEED - NUM_VARIATIONS) + 1, num_images=NUM_VARIATIONS)


def stored_images(studio: Studio, images: Iterable[GeneratedImage], owner: str) -> list[GeneratedImage]:
    """These images as they are stored now, without those deleted meanwhile."""
    ids = tuple(image.id for image in images if image.id is not None)
    found = studio.user_gallery(owner).search(Query(ids=ids, limit=min(len(ids), 1000))) if ids else []
    by_id = {image.id: image for image in found}
    return [by_id[image_id] for image_id in ids if image_id in by_id]


class ImageActions:
    """Runs the actions that `image_actions.html` offers; used by each tab that shows results."""

    def __init__(self, studio: Studio, create: CreateTab, edit: EditTab, tabs: gr.Tabs) -> None:
        self._studio = studio
        self._create = create
        self._edit = edit
        self._tabs = tabs

    @property
    def outputs(self) -> set[Any]:
        """The components that `open` updates."""
        form = self._create.form.widgets | self._create.guidance.outputs | {self._create.selected}
        return form | self._edit.load_image_outputs | {self._tabs}

    @property
    def options(self) -> dict[str, Any]:
        """Options of events with these outputs.

        Every click counts: Gradio would drop one on another button while the first is being answered.
        """
        return {**self._edit.load_image_options, "trigger_mode": "multiple"}

    def open(self, event: gr.EventData, owner: str) -> dict[Any, Any]:
        """Run one of OPENING_ACTIONS and select the tab that shows its effect."""
        image = self._studio.image(int(event.image), owner)
        if event.action in EDIT_OPERATIONS:
            loaded = self._edit.load_image(int(event.image), owner, EDIT_OPERATIONS[event.action])
            return {**loaded, self._tabs: gr.Tabs(selected="edit")}
        create = {self._tabs: gr.Tabs(selected="create")}
        if event.action in ("use_settings", "reuse_seed"):
            seed = image.request.seed if event.action == "reuse_seed" else RANDOM_SEED
            form = self._create.form.update_from_request(replace(image.request, seed=seed))
            return create | form | self._create.guidance.restore(image.request, owner)
        self._studio.submit_many([variations_of(image)], owner, "page")
        return {**create, self._create.selected: None}

    def change(self, event: gr.EventData, owner: str) -> str:
        """Run one of CHANGING_ACTIONS; returns the line that offers to undo a deletion, or ""."""
        gallery = self._studio.user_gallery(owner)
        if event.action == "favourite":
            gallery.favourite([int(event.image)], event.favourite == "true")
        elif event.action == "undo":
            gallery.undo(str(event.token))
        else:
            token, number = gallery.delete([int(event.image)])
            return render("undo.html", token=token, number=number)
        return ""
