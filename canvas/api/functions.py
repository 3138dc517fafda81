"""The functions published as Gradio API: what scripts call by name through `gradio_client`."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
from gradio.context import get_blocks_context

from canvas.api.watching import follow
from canvas.errors import CanvasError, NotFound
from canvas.identity import LOCAL
from canvas.jobs import Job
from canvas.request import GeneratedImage, GenerationRequest, Step

if TYPE_CHECKING:
    from canvas.studio import Studio

Function = TypeVar("Function", bound=Callable[..., Any])
File = dict[str, Any]  # what gradio.FileData is in JSON


def publish_functions(studio: Studio) -> None:
    """Add the API's functions to the Blocks whose context is open."""
    # Static files are handed out as they lie: any other way Gradio would copy each picture.
    gr.set_static_paths([studio.settings.outputs])
    functions = Functions(studio)
    published = (functions.generate, functions.models)
    _clear_names({function.__name__ for function in published})
    for function in published:
        # The studio queues: a limit here would only hide the order from the page.
        gr.api(function, api_name=function.__name__, concurrency_limit=None)


def _clear_names(names: set[str]) -> None:
    # Gradio names the page's private events after their handlers, first come, first served.
    blocks = get_blocks_context()
    for event in blocks.fns.values() if blocks else ():
        if event.api_visibility == "private" and event.api_name in names:
            event.api_name = f"page_{event.api_name}"


def _published(*returns: Any) -> Callable[[Function], Function]:
    """Spell out the hints for Gradio: it reads no strings, and of a generator no item."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        hint = GenericAlias(tuple, returns) if len(returns) > 1 else returns[0]
        signature = signature.replace(return_annotation=hint)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


class Functions:
    """What is published, bound to one studio; failures are told as `gr.Error`."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    @_published(gr.FileData, dict)
    async def generate(  # noqa: PLR0913, PLR0917 - these names are public, one parameter each
        self,
        prompt: str,
        negative_prompt: str = "",
        model_key: str = "starter",
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int = -1,
        style: str = "none",
        num_images: int = 1,
        request: gr.Request | None = None,
    ) -> AsyncIterator[tuple[File | None, dict]]:
        """Make pictures from a prompt; returns the first picture and the settings of all.

        What is left out is chosen to suit the model. Until the picture is there, each
        update carries progress in place of the settings.

        Args:
            prompt: What the picture shows, in English, most important things first.
            negative_prompt: What it must not show.
            model_key: One of the keys that the function models lists.
            width: Pixels, a multiple of 8; the model's native size is best.
            height: Pixels, a multiple of 8; the model's native size is best.
            num_inference_steps: 1 to 150; more is slower and finer.
            guidance_scale: 0 to 30; how strictly the prompt is followed.
            seed: Picture i is made with seed + i; -1 draws one.
            style: none, photorealistic, artistic, cartoon, anime, digital art, fantasy, sci-fi.
            num_images: 1 to 16.
        """
        try:
            wish = GenerationRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                model_key=model_key,
                width=width,
                height=height,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                seed=seed,
                style=style,
                num_images=num_images,
            )
            job = self._studio.submit(wish, _owner_of(request))
            async with aclosing(follow(job)) as changes:
                async for _ in changes:
                    if not job.finished:
                        yield None, self._progress(job)
            if job.error:
                raise job.error
            yield self._file(job.images[0]), self._settings(job.images)
        except CanvasError as error:
            raise gr.Error(str(error), print_exception=False) from error

    @_published(list[dict])
    def models(self) -> list[dict]:
        """List the models: key, native resolution, what each is good for, where it is."""
        return [
            {
                "model_key": spec.key,
                "name": spec.name,
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

    def _progress(self, job: Job) -> dict[str, Any]:
        told: dict[str, Any] = {"job_id": job.id, "status": job.status}
        if job.status == "queued":
            told["queue_position"] = self._studio.queue_position(job)
        if isinstance(step := job.progress, Step):
            told |= {
                "image_index": step.image_index,
                "step": step.step,
                "num_steps": step.num_steps,
                "fraction": step.fraction,
                "seconds_left": step.seconds_left,
            }
        return told

    def _settings(self, images: list[GeneratedImage]) -> dict[str, Any]:
        return {
            **images[0].settings(),
            "num_images": len(images),
            "pictures": [self._file(image) for image in images],
            "ids": [image.id for image in images],
        }

    def _file(self, image: GeneratedImage) -> File:
        return {
            "path": str(self._studio.picture_path(image.filename).resolve()),
            "orig_name": image.filename,
            "size": image.file_size,
            "mime_type": f"image/{image.request.image_format}",
            "meta": {"_type": "gradio.FileData"},
        }


def _owner_of(request: gr.Request | None) -> str:
    owner = getattr(getattr(request, "state", None), "owner", LOCAL)
    if owner is None:  # to the studio, no owner would mean everybody
        raise NotFound("Log in first.")
    return owner
