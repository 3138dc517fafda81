"""The functions published as Gradio API and MCP tools: pictures from pictures."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr

from canvas import validation
from canvas.api.pictures_in import hand_in, submit
from canvas.api.publishing import File, answers, caller, handed_in_path, published, told
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.studio import Studio

# Not `| None` in the hints: in a choice of types Gradio's MCP server sees no file.
NO_FILE: Any = None


class Editing:
    """What changes a picture, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @published(gr.FileData, dict)
    async def edit(  # noqa: PLR0913, PLR0917 - these names are public, one parameter each
        self,
        prompt: str,
        image: gr.FileData = NO_FILE,
        image_id: int | None = None,
        mask_image: gr.FileData = NO_FILE,
        strength: float | None = None,
        negative_prompt: str = "",
        model_key: str = "starter",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = -1,
        style: str = "none",
        num_images: int = 1,
        request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Redraw a picture after a prompt, all of it or the part that a mask shows.

        Returns the first new picture and the settings of all; on the way, progress in place of
        the settings. The picture that was handed in stays as it is.

        Args:
            prompt: What the new picture shows, all of it, not only what is to change.
            image: The picture to start from.
            image_id: Or the id of one of your own pictures, which history lists.
            mask_image: As large as the picture; white where it is to be redrawn.
            strength: 0.01 to 1; little keeps the picture, 1 forgets it.
            negative_prompt: What it must not show.
            model_key: One of the keys that models lists; starter needs no download.
            num_inference_steps: 1 to 150; more is slower and finer.
            guidance_scale: 0 to 30; how strictly the prompt is followed.
            seed: Picture i is made with seed + i; -1 draws one.
            style: none, photorealistic, artistic, cartoon, anime, digital art, fantasy, sci-fi.
            num_images: 1 to 16.
        """
        with told():
            owner = caller(request)
            start = await self._start(image, image_id, owner)
            mask = await self._handed_in(mask_image, "mask_image") if mask_image else None
            wish = GenerationRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                model_key=model_key,
                task="inpaint" if mask else "image_to_image",
                strength=strength,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                seed=seed,
                style=style,
                num_images=num_images,
                image=start,
                mask_image=mask,
            )
            job = await submit(self._studio, wish, owner)
            async with aclosing(answers(self._studio, job)) as so_far:
                async for answer in so_far:
                    yield answer

    @published(gr.FileData, dict)
    async def upscale(
        self,
        image: gr.FileData = NO_FILE,
        image_id: int | None = None,
        scale: int = 2,
        upscaler: str = "lanczos",
        request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Enlarge a picture; returns it and its settings, on the way progress in their place.

        Args:
            image: The picture to enlarge.
            image_id: Or the id of one of your own pictures, which history lists.
            scale: 2 or 4 times as wide and as high.
            upscaler: lanczos at once; illustration, photo and detail draw more and take longer.
        """
        with told():
            owner = caller(request)
            start = await self._start(image, image_id, owner)
            wish = GenerationRequest(
                "",
                task="upscale",
                image=start,
                scale=scale,
                upscaler=upscaler,
                model_key=self._studio.settings.model,
            )
            job = await submit(self._studio, wish, owner)
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
