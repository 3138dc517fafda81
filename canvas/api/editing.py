"""The functions published as Gradio API and MCP tools: pictures from pictures."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas import validation
from canvas.api.pictures_in import hand_in, submit
from canvas.api.publishing import (
    File,
    answers,
    caller,
    channel_of,
    handed_in_path,
    published,
    told,
)
from canvas.api.wishes import takes
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.studio import Studio


class Editing:
    """What changes a picture, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @published(gr.FileData, dict)
    @takes(
        "prompt",
        "image",
        "image_id",
        "mask_image",
        "strength",
        "negative_prompt",
        "model_key",
        "num_inference_steps",
        "guidance_scale",
        "seed",
        "style",
        "num_images",
        prompt="What the new picture shows, all of it, not only what is to change.",
    )
    async def edit(
        self, wish: dict[str, Any], request: gr.Request | None = None
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Redraw a picture after a prompt, all of it or the part that a mask shows.

        Returns the first new picture and the settings of all; on the way, progress in place of
        the settings. The picture that was handed in stays as it is.
        """
        with told():
            wish["task"] = "inpaint" if wish["mask_image"] else "image_to_image"
            async with aclosing(self._made(wish, request)) as so_far:
                async for answer in so_far:
                    yield answer

    @published(gr.FileData, dict)
    @takes("image", "image_id", "scale", "upscaler", image="The picture to enlarge.")
    async def upscale(
        self, wish: dict[str, Any], request: gr.Request | None = None
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Enlarge a picture; returns it and its settings, on the way progress in their place."""
        with told():
            wish |= {"prompt": "", "task": "upscale", "model_key": self._studio.settings.model}
            async with aclosing(self._made(wish, request)) as so_far:
                async for answer in so_far:
                    yield answer

    async def _made(
        self, wish: dict[str, Any], request: gr.Request | None
    ) -> AsyncGenerator[tuple[File | None, dict]]:
        owner = caller(request)
        image = await self._start(wish["image"], wish.pop("image_id"), owner)
        mask = wish.get("mask_image")
        mask = await self._handed_in(mask, "mask_image") if mask else None
        wanted = GenerationRequest(**{**wish, "image": image, "mask_image": mask})
        job = await submit(self._studio, wanted, owner, channel_of(request))
        async with aclosing(answers(self._studio, job)) as so_far:
            async for answer in so_far:
                yield answer

    async def _start(self, image: object, image_id: object, owner: str) -> str:
        if image_id is None:
            return await self._handed_in(image, "image")
        number = validation.whole_number("image_id", image_id, 1, 2**53)
        return self._studio.image(number, owner).filename

    async def _handed_in(self, file: object, field: str) -> str:
        return await hand_in(self._studio, handed_in_path(file, field), field)
