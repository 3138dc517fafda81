"""The functions of Gradio's API, which are MCP tools as well."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync
from gradio.context import get_blocks_context

from canvas import validation
from canvas.api.base import read_as_base64, run_database, stream_job
from canvas.api.gradio_signatures import (
    Caller,
    File,
    api_signature,
    current_owner,
    gradio_errors,
    image_result,
    job_function,
    job_progress,
    store_guidance,
    upload_file,
)
from canvas.errors import InvalidInput
from canvas.guidance import GUIDANCE_FIELDS
from canvas.jobs.job import Job
from canvas.request import LOCAL, GeneratedImage, GenerationRequest, rename_old_fields, with_old_names
from canvas.studio import Studio

OUTPUT_FIELDS = ("scheduler", "preset", "image_format", "quality", "loras", "prompt_weighting", "watermark")
VARIATION_FIELDS = ("variation_seed", "variation_strength")
MAX_ID = 2**53  # the largest whole number that JSON clients keep exactly


def register_api(studio: Studio) -> None:
    """Add the API's functions to the Blocks whose context is open."""
    # Gradio serves static files in place; it would copy any other file for each answer.
    gr.set_static_paths([studio.settings.outputs_dir])
    api = GradioApi(studio)
    functions = (
        *(api.generate, api.edit, api.upscale, api.models, api.download_model),
        *(api.history, api.image, api.status, api.cancel, api.recent_pictures, api.picture),
    )
    _adapt_page({function.__name__ for function in functions})
    for function in functions:
        # The studio has its own queue; a limit of Gradio's would hide jobs from it.
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
    gr.api(api.draw, api_name="draw", concurrency_limit=None, api_visibility="undocumented")


def _adapt_page(names: set[str]) -> None:
    """Keep these names free for the API, and let its callers omit parameters."""
    blocks = get_blocks_context()
    if blocks is None:
        return
    # Gradio names the page's private events after their handlers, and adds _1 to later ones.
    for event in blocks.fns.values():
        if event.api_visibility == "private" and event.api_name in names:
            event.api_name = f"page_{event.api_name}"
    # HTTP clients send all parameters in a list, those of earlier versions a shorter one.
    validate_inputs = blocks.root_block.validate_inputs

    def pad_and_validate(block_fn: Any, inputs: list[Any]) -> None:
        if block_fn.api_name in names:
            inputs += [None] * (len(block_fn.inputs) - len(inputs))
        validate_inputs(block_fn, inputs)

    blocks.root_block.validate_inputs = pad_and_validate  # type: ignore[method-assign]


class GradioApi:
    """The functions: those that make images, those about models, and those about the caller's images and jobs."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    @job_function(
        *("prompt", "negative_prompt", "model_key", "width", "height", "num_inference_steps", "guidance_scale", "seed"),
        *("style", "num_images", "backend", "where", *OUTPUT_FIELDS, *VARIATION_FIELDS, "scale_to_size"),
        *GUIDANCE_FIELDS,
    )
    async def generate(self, params: dict[str, Any], caller: Caller) -> Job:
        """Generate images from a prompt; returns the first image and the settings of all.

        Omit what you have no preference for: the defaults suit the model. Call models first
        to learn which models exist, what each is good for and how long it takes; a model that
        is not on disk is downloaded, which can take many minutes. Until the image is finished,
        each update has the progress in place of the settings. The same settings with the same
        seed produce the same image.
        """
        where = params.pop("where")
        if where is not None:
            params["backend"] = where
        return await self._submit(params, caller)

    @job_function(
        *("prompt", "image", "image_id", "mask_image", "strength", "negative_prompt", "model_key"),
        *("num_inference_steps", "guidance_scale", "seed", "style", "num_images"),
        *("width", "height", "resize_mode", "fill_color", "mask_blur", "only_masked", "outpaint", "backend"),
        *(*OUTPUT_FIELDS, *VARIATION_FIELDS, *GUIDANCE_FIELDS),
        prompt="What the new image shows: all of it, not only what is to change.",
    )
    async def edit(self, params: dict[str, Any], caller: Caller) -> Job:
        """Redraw an image from a prompt: all of it, or the part that a mask marks.

        Returns the first new image and the settings of all; until then, updates with the
        progress in place of the settings. The original image is not changed.
        """
        params["image"] = await self._image_name(params, caller)
        params["task"] = "image_to_image"
        if params["mask_image"]:
            params["task"] = "inpaint"
            params["mask_image"] = await upload_file(self.studio, params["mask_image"], "mask_image", caller.owner)
        elif any(params["outpaint"] or ()):
            params["task"] = "inpaint"
        return await self._submit(params, caller)

    @job_function(
        *("image", "image_id", "scale", "upscaler", "strength", "negative_prompt", "style", "num_inference_steps"),
        *("guidance_scale", "seed", *OUTPUT_FIELDS, "control_images"),
        image="The image to upscale.",
        strength="0.01 to 1; how much detail changes.",
    )
    async def upscale(self, params: dict[str, Any], caller: Caller) -> Job:
        """Upscale an image; returns it and its settings, and before that updates of progress."""
        params["image"] = await self._image_name(params, caller)
        fixed = {"prompt": "", "task": "upscale", "model_key": self.studio.settings.model}
        return await self._submit(params | fixed, caller)

    @job_function("fields", "image", "mask_image", preview=True)
    async def draw(self, params: dict[str, Any], caller: Caller) -> Job:
        """Generate the first image of a request for another Magic Canvas.

        Updates have the progress in place of the settings, with a small preview in base64.
        """
        fields = params.pop("fields")
        if not isinstance(fields, dict):
            raise InvalidInput("fields", fields, "a dict of the fields of a request")
        files = {
            name: await upload_file(self.studio, file, name, caller.owner) if file else None
            for name, file in params.items()
        }
        await store_guidance(self.studio, fields, caller.owner)
        fixed = {"backend": LOCAL, "num_images": 1, **files}
        request = GenerationRequest.from_dict(rename_old_fields(fields) | fixed)
        return await run_database(self.studio.submit, request, *caller)

    async def _submit(self, params: dict[str, Any], caller: Caller) -> Job:
        # What is None has no default here, but in the request.
        await store_guidance(self.studio, params, caller.owner)
        given = {name: value for name, value in params.items() if value is not None}
        return await run_database(self.studio.submit, GenerationRequest(**{"prompt": "", **given}), *caller)

    async def _image_name(self, params: dict[str, Any], caller: Caller) -> str:
        """The name of the image that `image` or `image_id` denotes."""
        image_id = params.pop("image_id")
        if image_id is None:
            return await upload_file(self.studio, params["image"], "image", caller.owner)
        image = await run_sync(self._find_image, image_id, caller.owner)
        return image.filename

    def _find_image(self, image_id: object, owner: str) -> GeneratedImage:
        return self.studio.image(validation.integer("image_id", image_id, 1, MAX_ID), owner)

    @api_signature(list[dict])
    def models(self) -> list[dict]:
        """List the models: what each is good for, its sizes, where it is, how long it takes.

        resolution is the native side length in pixels and gives the best images; min_size and
        max_size limit each side. state says whether the model is in memory, on disk or has to
        be downloaded first, and the seconds per image on this computer once known.
        """
        return [
            {
                "model_key": spec.key,
                "name": spec.public_name,
                "description": spec.description,
                "resolution": spec.resolution,
                "min_size": spec.min_size,
                "max_size": spec.max_size,
                "size": spec.size,
                "speed": spec.speed,
                "quality": spec.quality,
                "type": spec.type,
                "num_inference_steps": spec.num_inference_steps,
                "guidance_scale": spec.guidance_scale,
                "scheduler": spec.scheduler,
                "state": self.studio.model_status(spec.key).text,
            }
            for spec in self.studio.models.values()
        ]

    @api_signature(dict)
    async def download_model(self, model_key: str, http_request: gr.Request | None = None) -> AsyncIterator[dict]:
        """Download a model, so that its first image does not have to wait for it.

        Downloads can be gigabytes and take minutes; each update has the bytes so far.
        Cancelling the call stops the download and keeps the files that are complete.

        Args:
            model_key: A key that models lists.
        """
        with gradio_errors():
            owner = current_owner(http_request)
            job = await run_sync(self.studio.download_model, model_key, owner)
            async with aclosing(stream_job(job)) as updates:
                async for _ in updates:
                    if not job.finished:
                        yield await run_sync(job_progress, self.studio, job)
            if job.error:
                raise job.error
            yield await run_sync(self._downloaded, job)

    def _downloaded(self, job: Job) -> dict[str, Any]:
        state = self.studio.model_status(job.model_key).text
        return {**job_progress(self.studio, job), "state": state}

    @api_signature(list[dict])
    def history(
        self, limit: int | None = 20, offset: int | None = 0, http_request: gr.Request | None = None
    ) -> list[dict]:
        """List your images with their settings, the newest first.

        Args:
            limit: 1 to 200.
            offset: How many of the newest to skip.
        """
        with gradio_errors():
            images = self.studio.recent(
                current_owner(http_request),
                validation.integer("limit", 20 if limit is None else limit, 1, 200),
                validation.integer("offset", offset or 0, 0, MAX_ID),
            )
            return [
                {"id": image.id, "filename": image.filename, **with_old_names(image.settings())} for image in images
            ]

    @api_signature(tuple[gr.FileData, dict])
    def image(self, image_id: int, http_request: gr.Request | None = None) -> tuple[File, dict]:
        """Get one of your images and its settings.

        Args:
            image_id: An id that history lists.
        """
        with gradio_errors():
            image = self._find_image(image_id, current_owner(http_request))
            return image_result(self.studio, [image])

    @api_signature(list[dict])
    def status(self, http_request: gr.Request | None = None) -> list[dict]:
        """List your jobs of the last hour: queued, running with progress, and finished."""
        with gradio_errors():
            jobs = self.studio.jobs(current_owner(http_request))
            return [job_progress(self.studio, job) for job in jobs]

    @api_signature(dict)
    def cancel(self, job_id: str, http_request: gr.Request | None = None) -> dict[str, Any]:
        """Cancel one of your jobs; a running one stops within one step.

        Args:
            job_id: An id that status lists.
        """
        with gradio_errors():
            job = self.studio.job(str(job_id), current_owner(http_request))
            job.cancel()
            return job_progress(self.studio, job)

    @api_signature(str)
    @gr.mcp.resource("canvas://pictures", mime_type="text/plain")
    def recent_pictures(self, http_request: gr.Request | None = None) -> str:
        """Your latest images with their settings, as JSON."""
        return json.dumps(self.history(http_request=http_request))

    @api_signature(str)
    @gr.mcp.resource("canvas://pictures/{image_id}", mime_type="image/png")
    def picture(self, image_id: str, http_request: gr.Request | None = None) -> str:
        """One of your images, its file in base64.

        Args:
            image_id: An id that history lists.
        """
        with gradio_errors():
            number = validation.integer_from_text("image_id", str(image_id), 1, MAX_ID)
            image = self._find_image(number, current_owner(http_request))
            return read_as_base64(self.studio, image)
