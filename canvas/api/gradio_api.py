"""The functions published as Gradio API and MCP tools: making pictures, fetching models."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import get_blocks_context

from canvas import validation
from canvas.api.base import stream_job, submit, upload_image
from canvas.api.gradio_signatures import (
    File,
    api_signature,
    client_of,
    current_owner,
    file_data,
    gradio_errors,
    progress_of,
    settings_of,
    stream_result,
    uploaded_path,
    with_parameters,
)
from canvas.errors import InvalidInput
from canvas.request import LOCAL, GenerationRequest

if TYPE_CHECKING:
    from canvas.jobs.job import Job
    from canvas.studio import Studio

NO_FILE: Any = None


class RemoteGenerate:
    """What serves another Magic Canvas, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @api_signature(gr.FileData, dict)
    async def draw(
        self,
        fields: dict,
        image: gr.FileData = NO_FILE,
        mask_image: gr.FileData = NO_FILE,
        request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Make the first picture of a request that is given by all its fields.

        On the way progress takes the place of the settings, with a small preview in base64.

        Args:
            fields: Those of GenerationRequest; where is always this server.
            image: The picture to start from.
            mask_image: White where it is to be redrawn.
        """
        with gradio_errors():
            if not isinstance(fields, dict):
                raise InvalidInput("fields", fields, "the fields of a request by name")
            owner = current_owner(request)
            named = {"backend": LOCAL, "num_images": 1, "image": None, "mask_image": None}
            for name, file in (("image", image), ("mask_image", mask_image)):
                if file:
                    named[name] = await upload_image(self._studio, uploaded_path(file, name), name)
            wish = GenerationRequest.from_dict(fields | named)
            job = await submit(self._studio, wish, owner, client_of(request))
            async with aclosing(stream_job(job)) as changes:
                async for _ in changes:
                    if not job.finished:
                        yield None, progress_of(self._studio, job) | {"preview": _preview(job)}
            if job.error:
                raise job.error
            yield file_data(self._studio, job.images[0]), settings_of(self._studio, job.images)


def _preview(job: Job) -> str:
    if job.preview is None:
        return ""
    buffer = io.BytesIO()
    job.preview.convert("RGB").save(buffer, "JPEG", quality=70)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


class EditApi:
    """What changes a picture, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @api_signature(gr.FileData, dict)
    @with_parameters(
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
        with gradio_errors():
            wish["task"] = "inpaint" if wish["mask_image"] else "image_to_image"
            async with aclosing(self._made(wish, request)) as so_far:
                async for answer in so_far:
                    yield answer

    @api_signature(gr.FileData, dict)
    @with_parameters("image", "image_id", "scale", "upscaler", image="The picture to enlarge.")
    async def upscale(
        self, wish: dict[str, Any], request: gr.Request | None = None
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Enlarge a picture; returns it and its settings, on the way progress in their place."""
        with gradio_errors():
            wish |= {"prompt": "", "task": "upscale", "model_key": self._studio.settings.model}
            async with aclosing(self._made(wish, request)) as so_far:
                async for answer in so_far:
                    yield answer

    async def _made(
        self, wish: dict[str, Any], request: gr.Request | None
    ) -> AsyncGenerator[tuple[File | None, dict]]:
        owner = current_owner(request)
        image = await self._start(wish["image"], wish.pop("image_id"), owner)
        mask = wish.get("mask_image")
        mask = await self._handed_in(mask, "mask_image") if mask else None
        wanted = GenerationRequest(**{**wish, "image": image, "mask_image": mask})
        job = await submit(self._studio, wanted, owner, client_of(request))
        async with aclosing(stream_result(self._studio, job)) as so_far:
            async for answer in so_far:
                yield answer

    async def _start(self, image: object, image_id: object, owner: str) -> str:
        if image_id is None:
            return await self._handed_in(image, "image")
        number = validation.integer("image_id", image_id, 1, 2**53)
        return self._studio.image(number, owner).filename

    async def _handed_in(self, file: object, field: str) -> str:
        return await upload_image(self._studio, uploaded_path(file, field), field)


class HistoryApi:
    """What looks and stops, bound to one studio; a caller sees what is theirs."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @api_signature(list[dict])
    def history(
        self, limit: int = 20, offset: int = 0, request: gr.Request | None = None
    ) -> list[dict]:
        """List your pictures with their settings, the newest first.

        Args:
            limit: 1 to 200.
            offset: How many of the newest to skip.
        """
        with gradio_errors():
            images = self._studio.recent(
                current_owner(request),
                validation.integer("limit", limit, 1, 200),
                validation.integer("offset", offset, 0, 2**53),
            )
            return [{"id": image.id, **image.settings()} for image in images]

    @api_signature(gr.FileData, dict)
    def image(self, image_id: int, request: gr.Request | None = None) -> tuple[File, dict]:
        """Get one of your pictures and its settings.

        Args:
            image_id: The id that history lists.
        """
        with gradio_errors():
            number = validation.integer("image_id", image_id, 1, 2**53)
            image = self._studio.image(number, current_owner(request))
            return file_data(self._studio, image), settings_of(self._studio, [image])

    @api_signature(list[dict])
    def status(self, request: gr.Request | None = None) -> list[dict]:
        """List your jobs of the last hour: what waits, what runs and how far, what ended how."""
        with gradio_errors():
            return [
                progress_of(self._studio, job) for job in self._studio.jobs(current_owner(request))
            ]

    @api_signature(dict)
    def cancel(self, job_id: str, request: gr.Request | None = None) -> dict[str, Any]:
        """Stop one of your jobs, within one step if it runs.

        Args:
            job_id: The id that status lists.
        """
        with gradio_errors():
            job = self._studio.job(str(job_id), current_owner(request))
            job.cancel()
            return progress_of(self._studio, job)

    @api_signature(str)
    @gr.mcp.resource("canvas://pictures", mime_type="text/plain")
    def recent_pictures(self, request: gr.Request | None = None) -> str:
        """Your latest pictures with their settings, as JSON."""
        return json.dumps(self.history(request=request))

    @api_signature(str)
    @gr.mcp.resource("canvas://pictures/{image_id}", mime_type="image/png")
    def picture(self, image_id: str, request: gr.Request | None = None) -> str:
        """One of your pictures, its file in base64.

        Args:
            image_id: The id that history lists.
        """
        with gradio_errors():
            number = validation.integer("image_id", _number(image_id), 1, 2**53)
            image = self._studio.image(number, current_owner(request))
            content = self._studio.image_path(image.filename).read_bytes()
            return base64.b64encode(content).decode()


def _number(text: object) -> object:
    return int(text) if isinstance(text, str) and text.isdecimal() else text


def register_api(studio: Studio) -> None:
    """Add the API's functions to the Blocks whose context is open."""
    # Static files are handed out as they lie: any other way Gradio would copy each picture.
    gr.set_static_paths([studio.settings.outputs_dir])
    making, editing, records = GenerateApi(studio), EditApi(studio), HistoryApi(studio)
    functions = (
        making.generate,
        editing.edit,
        editing.upscale,
        making.models,
        making.download_model,
        records.history,
        records.image,
        records.status,
        records.cancel,
        records.recent_pictures,
        records.picture,
    )
    _avoid_name_clashes({function.__name__ for function in functions})
    for function in functions:
        # The studio queues: a limit here would only hide the order from the page.
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
    # For another Magic Canvas, not for people or agents.
    drawing = RemoteGenerate(studio).draw
    gr.api(drawing, api_name="draw", concurrency_limit=None, api_visibility="undocumented")


def _avoid_name_clashes(names: set[str]) -> None:
    # Gradio names the page's private events after their handlers, first come, first served.
    blocks = get_blocks_context()
    for event in blocks.fns.values() if blocks else ():
        if event.api_visibility == "private" and event.api_name in names:
            event.api_name = f"page_{event.api_name}"


class GenerateApi:
    """What makes something, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @api_signature(gr.FileData, dict)
    @with_parameters(
        "prompt",
        "negative_prompt",
        "model_key",
        "width",
        "height",
        "num_inference_steps",
        "guidance_scale",
        "seed",
        "style",
        "num_images",
        "backend",
    )
    async def generate(
        self, wish: dict[str, Any], request: gr.Request | None = None
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Make pictures from a prompt; returns the first picture and the settings of all.

        Leave out what you have no opinion on: it is chosen to suit the model. Ask the tool
        models first which models there are, what each is good for and how long it takes; a
        model that is not on disk yet is downloaded, which can take many minutes. Until the
        picture is there, each update carries progress in place of the settings. The same
        settings with the same seed give the same picture again.
        """
        with gradio_errors():
            wanted = GenerationRequest(**wish)
            job = self._studio.submit(wanted, current_owner(request), client_of(request))
            async with aclosing(stream_result(self._studio, job)) as told_so_far:
                async for answer in told_so_far:
                    yield answer

    @api_signature(list[dict])
    def models(self) -> list[dict]:
        """List the models: what each is good for, its sizes, where it is, how long it takes.

        resolution is the native side in pixels and gives the best pictures; min_size and
        max_size bound each side. state says whether the model is in memory, on disk or has to
        be downloaded first, and the seconds a picture takes on this machine once known.
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
                "state": self._studio.model_status(spec.key).text,
            }
            for spec in self._studio.models.values()
        ]

    @api_signature(dict)
    async def download_model(
        self, model_key: str, request: gr.Request | None = None
    ) -> AsyncIterator[dict]:
        """Fetch a model to the disk, so that its first picture need not wait for it.

        Gigabytes, so minutes; each update carries the bytes so far. A call that is given up
        stops the download; what was fetched stays.

        Args:
            model_key: One of the keys that models lists.
        """
        with gradio_errors():
            job = self._studio.download_model(model_key, current_owner(request))
            async with aclosing(stream_job(job)) as changes:
                async for _ in changes:
                    if not job.finished:
                        yield progress_of(self._studio, job)
            if job.error:
                raise job.error
            yield {
                **progress_of(self._studio, job),
                "state": self._studio.model_status(model_key).text,
            }
