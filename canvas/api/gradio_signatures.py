"""Turns methods into functions of Gradio's API: parameters, errors and results."""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import MISSING, fields
from functools import wraps
from types import GenericAlias
from typing import Any, NamedTuple, TypeVar, get_type_hints

import gradio as gr
from anyio.to_thread import run_sync

from canvas.api.base import encode_preview, require_owner, stream_job, upload_image
from canvas.errors import CanvasError, InvalidInput, MissingApiKey
from canvas.guidance import GUIDANCE_FIELDS
from canvas.image_formats import IMAGE_FORMATS
from canvas.jobs.job import Job
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate, with_old_names
from canvas.studio import Studio

# The MCP server sends this header with its calls of our functions.
CLIENT_HEADER, MCP_CLIENT = "x-canvas-client", "mcp"
OLD_CLIENT_HEADER = "x-canvas-door"  # its name before version 0.2
# Descriptions of the parameters, for the API page and for agents. Type and default are those
# of the GenerationRequest field, or in EXTRA_PARAMS.
PARAM_DOCS: Mapping[str, str] = {
    "prompt": "What the image shows, in English, the most important things first.",
    "image": "The image to start from.",
    "image_id": "Or the id of one of your own images, as listed by history.",
    "mask_image": "Of the size of the image; white where it is to be redrawn.",
    "strength": "0.01 to 1; higher values change more.",
    "negative_prompt": "What the image must not show.",
    "model_key": "A key that models lists; starter needs no download.",
    "width": "Pixels, a multiple of 8; default: the model's native size, which is best.",
    "height": "Pixels, a multiple of 8; default: the model's native size, which is best.",
    "num_inference_steps": "1 to 150; more is slower and finer.",
    "guidance_scale": "0 to 30; how strictly the prompt is followed.",
    "seed": "Image i uses seed + i; -1 for a random seed.",
    "style": "none, photorealistic, artistic, cartoon, anime, digital art, fantasy, sci-fi.",
    "num_images": "1 to 16.",
    "backend": "local; or hf-inference or remote, after the user has agreed to it on the page.",
    "where": "The former name of backend; still accepted.",
    "scale": "2 or 4 times the width and height.",
    "upscaler": "lanczos is instant; illustration, photo and detail add detail and take longer.",
    "preset": "quality, balanced or turbo; the latter are faster.",
    "scheduler": "Such as Euler a; default: that of the model.",
    "image_format": "png, jpeg or webp.",
    "quality": "1 to 100, of JPEG and WebP.",
    "loras": 'Pairs of a name and a weight, such as [["watercolour", 0.8]].',
    "prompt_weighting": "Whether (word:1.3) in a prompt is a weight.",
    "watermark": "A line of text on the image.",
    "variation_seed": "A seed to vary the image towards.",
    "variation_strength": "0 to 1; how far towards variation_seed.",
    "scale_to_size": "Whether a size that the model cannot draw is scaled instead of refused.",
    "resize_mode": "How an image of another shape is fitted: crop, pad or stretch.",
    "fill_color": "Such as #ffffff; behind transparent parts and beside a padded image.",
    "mask_blur": "0 to 256 pixels.",
    "only_masked": "Whether the masked area alone is drawn, at the model's full resolution.",
    "outpaint": "Pixels to add on the left, top, right and bottom, such as [0, 0, 128, 0].",
    "control_images": (
        'Images whose structure the result follows: [{"image": FILE, "kind": "canny", "weight": 1.0, "start": 0.0, '
        '"end": 1.0}]; kind is auto, canny, lineart, scribble, soft_edge, depth, pose, tile or inpaint.'
    ),
    "reference_images": (
        'Images whose subject, style or face the result takes on: [{"image": FILE, "weight": 0.6, "kind": "style"}].'
    ),
    "fields": "The fields of a GenerationRequest by name; the backend is always this server.",
}
# Type and default of parameters that are no request field, or a name in the request.
# Not `gr.FileData | None`: Gradio's MCP server recognizes no file in a union.
EXTRA_PARAMS: Mapping[str, tuple[Any, Any]] = {
    "image": (gr.FileData, None),
    "image_id": (int | None, None),
    "mask_image": (gr.FileData, None),
    "where": (str | None, None),
    "loras": (list | None, None),
    "outpaint": (list | None, None),
    "control_images": (list | None, None),
    "reference_images": (list | None, None),
    "fields": (dict, inspect.Parameter.empty),
}

POSITIONAL_OR_KEYWORD = inspect.Parameter.POSITIONAL_OR_KEYWORD

File = dict[str, Any]  # the JSON of gradio.FileData
Result = tuple[File | None, dict[str, Any]]
Function = TypeVar("Function", bound=Callable[..., Any])


class Caller(NamedTuple):
    """Who calls a function, and through which client."""

    owner: str
    client: str


def job_function(
    *names: str, preview: bool = False, **docs: str
) -> Callable[[Callable[..., Awaitable[Job]]], Callable[..., AsyncIterator[Result]]]:
    """Make a Gradio function with these parameters of a method that submits a job.

    The method gets the parameters as a dict and the Caller; its class has the `studio`. The
    function yields no file and the progress until the job is done, then the first image and
    the settings of all images. `preview` adds small previews to the progress, `docs` replace
    PARAM_DOCS.
    """
    own = [_parameter(name) for name in names]
    parameters = [
        inspect.Parameter("self", POSITIONAL_OR_KEYWORD),
        *own,
        inspect.Parameter("http_request", POSITIONAL_OR_KEYWORD, default=None, annotation=gr.Request | None),
    ]
    signature = inspect.Signature(parameters, return_annotation=GenericAlias(tuple, (gr.FileData, dict)))

    def decorate(method: Callable[..., Awaitable[Job]]) -> Callable[..., AsyncIterator[Result]]:
        @wraps(method)
        async def function(*args: Any, **kwargs: Any) -> AsyncIterator[Result]:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            self, *values, http_request = bound.arguments.values()
            client = client_of(http_request)
            with gradio_errors(client):
                caller = Caller(current_owner(http_request), client)
                params = {
                    name: _given(parameter, value) for name, parameter, value in zip(names, own, values, strict=True)
                }
                job = await method(self, params, caller)
                async with aclosing(_stream_result(self.studio, job, preview)) as results:
                    async for result in results:
                        yield result

        vars(function).pop("__wrapped__")
        function.__signature__ = signature  # type: ignore[attr-defined]
        # Gradio reads these beside the signature.
        function.__annotations__ = {one.name: one.annotation for one in parameters[1:]}
        args_doc = "\n".join(f"    {name}: {docs.get(name, PARAM_DOCS[name])}" for name in names)
        function.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:\n{args_doc}"
        return function

    return decorate


def _given(parameter: inspect.Parameter, value: Any) -> Any:
    """The value; None stands for the default, as HTTP clients send all parameters in a list."""
    has_default = value is None and parameter.default is not inspect.Parameter.empty
    return parameter.default if has_default else value


def _parameter(name: str) -> inspect.Parameter:
    if name in EXTRA_PARAMS:
        annotation, default = EXTRA_PARAMS[name]
    else:
        annotation = get_type_hints(GenerationRequest)[name]
        [field] = [field for field in fields(GenerationRequest) if field.name == name]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(name, POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


def api_signature(returns: Any) -> Callable[[Function], Function]:
    """Evaluate a method's annotations for Gradio, which reads no strings.

    `returns` is the type of a generator's items.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function, eval_str=True)
        function.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
        return function

    return decorate


@contextmanager
def gradio_errors(client: str = "gradio") -> Iterator[None]:
    """Raise our errors as gr.Error, whose message reaches the client; agents get the parameter's name, too."""
    try:
        yield
    except CanvasError as error:
        message, field = str(error), getattr(error, "field", "")
        if client == MCP_CLIENT and field and field not in message:
            message = f"{field}: {message}"
        raise gr.Error(message, print_exception=False) from error


def current_owner(http_request: gr.Request | None) -> str:
    """The owner whose jobs and images the call may use; raises MissingApiKey."""
    if http_request is None:  # only for direct calls in Python
        raise MissingApiKey
    return require_owner(http_request)


def client_of(http_request: gr.Request | None) -> str:
    """The client that is recorded with the image: `mcp` or `gradio`."""
    headers = http_request.headers if http_request else {}
    client = headers.get(CLIENT_HEADER) or headers.get(OLD_CLIENT_HEADER)
    return MCP_CLIENT if client == MCP_CLIENT else "gradio"


async def upload_file(studio: Studio, file: object, field: str, owner: str) -> str:
    """Store a file that the caller uploaded to Gradio; returns its name for a request."""
    if not isinstance(file, dict):
        raise InvalidInput(field, file, "an image uploaded with the call, or an image_id")
    path = await run_sync(studio.temp_files.find, file.get("path"), owner, field)
    return await upload_image(studio, path, field)


async def store_guidance(studio: Studio, params: dict[str, Any], owner: str) -> None:
    """Replace the files and ids in `control_images` and `reference_images` by names of stored images."""
    for field in GUIDANCE_FIELDS:
        items = params.get(field)
        if isinstance(items, list):
            params[field] = [await _store_item(studio, item, field, owner) for item in items]


async def _store_item(studio: Studio, item: Any, field: str, owner: str) -> Any:
    source = item.get("image") if isinstance(item, dict) else None
    if isinstance(source, dict):
        return {**item, "image": await upload_file(studio, source, field, owner)}
    if isinstance(source, int) and not isinstance(source, bool):
        image = await run_sync(studio.image, source, owner)
        return {**item, "image": image.filename}
    return item  # a name


async def _stream_result(studio: Studio, job: Job, preview: bool) -> AsyncGenerator[Result, None]:
    async with aclosing(stream_job(job)) as updates:
        async for _ in updates:
            if not job.finished:
                progress = await run_sync(job_progress, studio, job)
                if preview:
                    progress["preview"] = await run_sync(_preview, job)
                yield None, progress
    if job.error:
        raise job.error
    yield await run_sync(image_result, studio, job.images)


def _preview(job: Job) -> str:
    preview = job.preview
    return "" if preview is None else encode_preview(preview, "JPEG", quality=70)


def image_result(studio: Studio, images: list[GeneratedImage]) -> tuple[File, dict[str, Any]]:
    """The file of the first image, and its settings with the files and ids of all."""
    files = [_file_data(studio, image) for image in images]
    settings = {
        **with_old_names(images[0].settings()),
        "num_images": len(images),
        "pictures": files,
        "ids": [image.id for image in images],
        "images": [{"id": image.id, "filename": image.filename, **image.settings()} for image in images],
    }
    return files[0], settings


def _file_data(studio: Studio, image: GeneratedImage) -> File:
    return {  # downloaded unchanged by clients
        "path": str(studio.image_path(image.filename).resolve()),
        "orig_name": image.filename,
        "size": image.file_size,
        "mime_type": IMAGE_FORMATS[image.request.image_format].mime_type,
        "meta": {"_type": "gradio.FileData"},
    }


def job_progress(studio: Studio, job: Job) -> dict[str, Any]:
    """Status and progress of a job. May wait for the database."""
    answer: dict[str, Any] = {"job_id": job.id, "kind": job.kind, "model_key": job.model_key, "status": job.status}
    if job.error:
        answer["error"] = str(job.error)
    if job.status == "queued":
        answer["queue_position"] = studio.queue_position(job)
        answer["seconds_to_wait"] = studio.queue_wait(job)
    progress = job.progress
    if progress is None:
        return answer
    names: tuple[str, ...] = ("bytes_done", "bytes_total", "bytes_per_second", "seconds_left")
    if isinstance(progress, ProgressUpdate):
        names = ("image_index", "step", "num_steps", "fraction", "seconds_left")
    return answer | {name: getattr(progress, name) for name in names}
