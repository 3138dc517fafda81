"""How a function becomes part of Gradio's API: its hints spelled out, its failures in words."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from types import GenericAlias
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import gradio as gr
from gradio.utils import get_upload_folder

from canvas.api.base import require_owner, stream_job
from canvas.errors import CanvasError, InvalidInput, MissingApiKey
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    from canvas.jobs.job import Job
    from canvas.studio import Studio

# What is said of each parameter; agents read it, too. Types and defaults are the request's.
PARAM_DOCS = {
    "prompt": "What the picture shows, in English, the most important things first.",
    "image": "The picture to start from.",
    "image_id": "Or the id of one of your own pictures, which history lists.",
    "mask_image": "As large as the picture; white where it is to be redrawn.",
    "strength": "0.01 to 1; little keeps the picture, 1 forgets it.",
    "negative_prompt": "What it must not show.",
    "model_key": "One of the keys that models lists; starter needs no download.",
    "width": "Pixels, a multiple of 8; left out, the model's native size, which is best.",
    "height": "Pixels, a multiple of 8; left out, the model's native size, which is best.",
    "num_inference_steps": "1 to 150; more is slower and finer.",
    "guidance_scale": "0 to 30; how strictly the prompt is followed.",
    "seed": "Picture i is made with seed + i; -1 draws one.",
    "style": "none, photorealistic, artistic, cartoon, anime, digital art, fantasy, sci-fi.",
    "num_images": "1 to 16.",
    "backend": "local; or hf-inference or remote, once the user has agreed to it on the page.",
    "scale": "2 or 4 times as wide and as high.",
    "upscaler": "lanczos at once; illustration, photo and detail draw more and take longer.",
}
# What comes as a file or a number where the request holds a name.
# Not `| None` in the files' hints: in a choice of types Gradio's MCP server sees no file.
FILE_PARAMS: dict[str, Any] = {
    "image": gr.FileData,
    "image_id": int | None,
    "mask_image": gr.FileData,
}

Answers = AsyncIterator[Any]
Method = Callable[[Any, dict[str, Any], gr.Request | None], Answers]


def with_parameters(*names: str, **words: str) -> Callable[[Method], Callable[..., Answers]]:
    """Give a method that takes a dict the parameters of these names; `words` replace WORDS."""
    parameters = [_parameter(name) for name in names]

    def decorate(method: Method) -> Callable[..., Answers]:
        @wraps(method)
        async def call_with_dict(self: Any, *values: Any, **named: Any) -> Answers:
            given = signature.bind(self, *values, **named)
            given.apply_defaults()
            _, *wanted, request = given.arguments.values()
            wish = dict(zip(names, wanted, strict=True))
            async with aclosing(method(self, wish, request)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        own = inspect.signature(method, eval_str=True).parameters
        signature = inspect.Signature([own["self"], *parameters, own["request"]])
        call_with_dict.__signature__ = signature  # type: ignore[attr-defined]
        call_with_dict.__annotations__ = {  # Gradio reads these beside the signature
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if name != "self"
        }
        told = "\n".join(f"    {name}: {words.get(name, PARAM_DOCS[name])}" for name in names)
        call_with_dict.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:\n{told}"
        return call_with_dict

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    hint, default = FILE_PARAMS.get(name), None
    if hint is None:
        hint = get_type_hints(GenerationRequest)[name]
        [field] = [field for field in fields(GenerationRequest) if field.name == name]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint
    )


Function = TypeVar("Function", bound=Callable[..., Any])
# What the MCP server sends along with its calls of the functions.
CLIENT_HEADER, MCP = "x-canvas-door", "mcp"
File = dict[str, Any]  # what gradio.FileData is in JSON


def api_signature(*returns: Any) -> Callable[[Function], Function]:
    """Spell out the hints for Gradio: it reads no strings, and of a generator no item."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        hint = GenericAlias(tuple, returns) if len(returns) > 1 else returns[0]
        signature = signature.replace(return_annotation=hint)
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


@contextmanager
def gradio_errors() -> Iterator[None]:
    """Tell what fails in the block as Gradio's clients show it."""
    try:
        yield
    except CanvasError as error:
        raise gr.Error(str(error), print_exception=False) from error


def current_owner(request: gr.Request | None) -> str:
    """Whose pictures the call is about; raises NotAllowed."""
    if request is None:  # Gradio gives one to every call
        raise MissingApiKey
    return require_owner(request)


def client_of(request: gr.Request | None) -> str:
    """By which door a call of one of the functions came in."""
    return MCP if request and request.headers.get(CLIENT_HEADER) == MCP else "gradio"


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
        answer["seconds_to_wait"] = studio.queue_wait(job)
    progress = job.progress
    if isinstance(progress, ProgressUpdate):
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
        "pictures": [file_data(studio, image) for image in images],
        "ids": [image.id for image in images],
    }


def file_data(studio: Studio, image: GeneratedImage) -> File:
    """Where a client fetches the file as it was written."""
    return {
        "path": str(studio.image_path(image.filename).resolve()),
        "orig_name": image.filename,
        "size": image.file_size,
        "mime_type": f"image/{image.request.image_format}",
        "meta": {"_type": "gradio.FileData"},
    }


async def stream_result(studio: Studio, job: Job) -> AsyncGenerator[tuple[File | None, dict], None]:
    """Progress until the pictures are there, then the first of them and the settings of all."""
    async with aclosing(stream_job(job)) as changes:
        async for _ in changes:
            if not job.finished:
                yield None, progress_of(studio, job)
    if job.error:
        raise job.error
    yield file_data(studio, job.images[0]), settings_of(studio, job.images)


def uploaded_path(file: object, field: str) -> Path:
    """Where Gradio put a file that the caller uploaded; no other file is taken."""
    path = file.get("path") if isinstance(file, dict) else None
    folder = Path(get_upload_folder()).resolve()
    if isinstance(path, str) and "\0" not in path:
        resolved = Path(path).resolve()
        if resolved.is_relative_to(folder) and resolved.is_file():
            return resolved
    raise InvalidInput(field, path, "a picture that is uploaded with the call, or an image_id")
