"""How a function becomes part of Gradio's API: its hints spelled out, its failures in words."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar

import gradio as gr
from gradio.utils import get_upload_folder

from canvas.api.access import owner_of
from canvas.api.watching import follow
from canvas.errors import CanvasError, InvalidInput, NotAllowed
from canvas.request import GeneratedImage, Step

if TYPE_CHECKING:
    from canvas.jobs import Job
    from canvas.studio import Studio

Function = TypeVar("Function", bound=Callable[..., Any])
# What the MCP server sends along with its calls of the functions.
DOOR, MCP = "x-canvas-door", "mcp"
File = dict[str, Any]  # what gradio.FileData is in JSON


def published(*returns: Any) -> Callable[[Function], Function]:
    """Spell out the hints for Gradio: it reads no strings, and of a generator no item."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        hint = GenericAlias(tuple, returns) if len(returns) > 1 else returns[0]
        signature = signature.replace(return_annotation=hint)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


@contextmanager
def told() -> Iterator[None]:
    """Tell what fails in the block as Gradio's clients show it."""
    try:
        yield
    except CanvasError as error:
        raise gr.Error(str(error), print_exception=False) from error


def caller(request: gr.Request | None) -> str:
    """Whose pictures the call is about; raises NotAllowed."""
    if request is None:  # Gradio gives one to every call
        raise NotAllowed
    return owner_of(request)


def channel_of(request: gr.Request | None) -> str:
    """By which door a call of one of the functions came in."""
    return MCP if request and request.headers.get(DOOR) == MCP else "gradio"


def progress_of(studio: Studio, job: Job) -> dict[str, Any]:
    """How far a job is."""
    answer: dict[str, Any] = {
        "job_id": job.id,
        "kind": job.kind,
        "model_key": job.model_key,
        "status": job.status,
    }
    if job.error:
        answer["error"] = str(job.error)
    if job.status == "queued":
        answer["queue_position"] = studio.queue_position(job)
        answer["seconds_to_wait"] = studio.seconds_to_wait(job)
    progress = job.progress
    if isinstance(progress, Step):
        answer |= {
            "image_index": progress.image_index,
            "step": progress.step,
            "num_steps": progress.num_steps,
            "fraction": progress.fraction,
            "seconds_left": progress.seconds_left,
        }
    elif progress is not None:
        answer |= {
            "bytes_done": progress.bytes_done,
            "bytes_total": progress.bytes_total,
            "bytes_per_second": progress.bytes_per_second,
            "seconds_left": progress.seconds_left,
        }
    return answer


def settings_of(studio: Studio, images: list[GeneratedImage]) -> dict[str, Any]:
    """The settings of a batch, and its files."""
    return {
        **images[0].settings(),
        "num_images": len(images),
        "pictures": [file_of(studio, image) for image in images],
        "ids": [image.id for image in images],
    }


def file_of(studio: Studio, image: GeneratedImage) -> File:
    """Where a client fetches the file as it was written."""
    return {
        "path": str(studio.picture_path(image.filename).resolve()),
        "orig_name": image.filename,
        "size": image.file_size,
        "mime_type": f"image/{image.request.image_format}",
        "meta": {"_type": "gradio.FileData"},
    }


async def answers(studio: Studio, job: Job) -> AsyncGenerator[tuple[File | None, dict], None]:
    """Progress until the pictures are there, then the first of them and the settings of all."""
    async with aclosing(follow(job)) as changes:
        async for _ in changes:
            if not job.finished:
                yield None, progress_of(studio, job)
    if job.error:
        raise job.error
    yield file_of(studio, job.images[0]), settings_of(studio, job.images)


def handed_in_path(file: object, field: str) -> Path:
    """Where Gradio put a file that the caller uploaded; no other file is taken."""
    path = file.get("path") if isinstance(file, dict) else None
    folder = Path(get_upload_folder()).resolve()
    if isinstance(path, str) and "\0" not in path:
        resolved = Path(path).resolve()
        if resolved.is_relative_to(folder) and resolved.is_file():
            return resolved
    raise InvalidInput(field, path, "a picture that is uploaded with the call, or an image_id")
