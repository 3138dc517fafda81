"""The functions published as Gradio API and MCP tools: making pictures, fetching models."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio.context import get_blocks_context

from canvas.api.drawing import Drawing
from canvas.api.editing import Editing
from canvas.api.publishing import (
    File,
    answers,
    caller,
    channel_of,
    progress_of,
    published,
    told,
)
from canvas.api.records import Records
from canvas.api.watching import follow
from canvas.api.wishes import takes
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from canvas.studio import Studio


def publish_functions(studio: Studio) -> None:
    """Add the API's functions to the Blocks whose context is open."""
    # Static files are handed out as they lie: any other way Gradio would copy each picture.
    gr.set_static_paths([studio.settings.outputs])
    making, editing, records = Functions(studio), Editing(studio), Records(studio)
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
    _clear_names({function.__name__ for function in functions})
    for function in functions:
        # The studio queues: a limit here would only hide the order from the page.
        gr.api(function, api_name=function.__name__, concurrency_limit=None)
    # For another Magic Canvas, not for people or agents.
    drawing = Drawing(studio).draw
    gr.api(drawing, api_name="draw", concurrency_limit=None, api_visibility="undocumented")


def _clear_names(names: set[str]) -> None:
    # Gradio names the page's private events after their handlers, first come, first served.
    blocks = get_blocks_context()
    for event in blocks.fns.values() if blocks else ():
        if event.api_visibility == "private" and event.api_name in names:
            event.api_name = f"page_{event.api_name}"


class Functions:
    """What makes something, bound to one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @published(gr.FileData, dict)
    @takes(
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
        "where",
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
        with told():
            wanted = GenerationRequest(**wish)
            job = self._studio.submit(wanted, caller(request), channel_of(request))
            async with aclosing(answers(self._studio, job)) as told_so_far:
                async for answer in told_so_far:
                    yield answer

    @published(list[dict])
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
                "state": self._studio.model_state(spec.key).sentence,
            }
            for spec in self._studio.models.values()
        ]

    @published(dict)
    async def download_model(
        self, model_key: str, request: gr.Request | None = None
    ) -> AsyncIterator[dict]:
        """Fetch a model to the disk, so that its first picture need not wait for it.

        Gigabytes, so minutes; each update carries the bytes so far. A call that is given up
        stops the download; what was fetched stays.

        Args:
            model_key: One of the keys that models lists.
        """
        with told():
            job = self._studio.download(model_key, caller(request))
            async with aclosing(follow(job)) as changes:
                async for _ in changes:
                    if not job.finished:
                        yield progress_of(self._studio, job)
            if job.error:
                raise job.error
            yield {
                **progress_of(self._studio, job),
                "state": self._studio.model_state(model_key).sentence,
            }
