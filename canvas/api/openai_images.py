"""The images API of OpenAI: `/v1/images/…` and `/v1/models`."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Any, Literal

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from pydantic import AliasChoices, BaseModel, Field, ValidationError, field_validator
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from canvas.api.base import (
    ApiRoute,
    encode_preview,
    image_url,
    invalid_body,
    read_as_base64,
    require_owner,
    run_database,
    stream_job,
    upload_guidance,
    upload_image,
    upload_mask,
    wait_for_job,
)
from canvas.api.replies import ErrorReply, ImagesReply, ModelList, ModelReply
from canvas.catalog import ModelSpec, get_model
from canvas.engine import masks
from canvas.engine.image_io import decode_image
from canvas.errors import CanvasError, InvalidInput, LazyMessage, StorageError, UnknownModel
from canvas.guidance import GUIDANCE_FIELDS
from canvas.history.infotext import read_infotext
from canvas.history.metadata import read_text
from canvas.jobs.job import Job
from canvas.request import LOCAL, GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.studio import Studio

log = logging.getLogger(__name__)

# Our fields whose name differs in this API.
PARAM_NAMES = {
    "model_key": "model",
    "width": "size",
    "height": "size",
    "num_images": "n",
    "image_format": "output_format",
    "quality": "output_compression",
}
OPENAI_STYLES = ("vivid", "natural")  # of dall-e-3; ignored
# Clients name these without a choice; they get the default model.
OPENAI_MODELS = re.compile(r"(?:openai/)?(?:dall-e|gpt|chatgpt)\b.*")
MODEL_HEADER = "X-Canvas-Model"
# Fields of a request that have the same name here; those of the second list act with an image.
OWN_FIELDS = (
    *("num_inference_steps", "guidance_scale", "scheduler", "preset", "loras", "prompt_weighting", "watermark"),
    *("variation_seed", "variation_strength", "scale_to_size"),
)
EDIT_FIELDS = ("strength", "resize_mode", "fill_color", "mask_blur", "only_masked", "outpaint", "scale", "upscaler")
IMAGE_FILE = "an image file (PNG, JPEG or WebP)"
DEFAULT_VARIATION_PROMPT = "the same scene"  # for files without embedded settings
METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
IMAGES_RESPONSE: dict[str, Any] = {
    "model": ImagesReply,
    "description": "The images; with `stream` server-sent events.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}
# Clients expect token counts; generation here uses none.
NO_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


class ControlImageBody(BaseModel):
    """An image whose structure the result follows; see `ImageRequest`."""

    image: str
    kind: str | None = None
    weight: float | None = None
    start: float | None = None
    end: float | None = None
    detect: bool | None = None
    resize_mode: str | None = None
    model: str | None = None


class ReferenceImageBody(BaseModel):
    """An image whose subject, style or face the result takes on; see `ImageRequest`."""

    image: str
    weight: float | None = None
    kind: str | None = None
    model: str | None = None


class ImageRequest(BaseModel):
    """OpenAI's fields, and these of ours; unknown fields are ignored.

    `model` is a key that `/v1/models` lists; OpenAI's own names stand for the default model.
    `size` is WIDTHxHEIGHT, or auto for the model's native size; a size that the model cannot draw
    is scaled unless `scale_to_size` is false. `preset` is quality, balanced or turbo, `loras` are
    pairs of a name and a weight. `control_images` and `reference_images` hold images in base64 or as
    data URLs, or names of images on this server. With `progress`, a stream has an event per step. `backend` is
    local, hf-inference or remote; the last two require `accept_terms` once. `client` is `cli` for
    our command line. The former names `mode`, `where`, `agree` and `channel` are still accepted.
    """

    prompt: str
    model: str | None = None
    n: int | None = Field(None, ge=1, le=16)
    size: str | None = None
    width: int | None = None
    height: int | None = None
    response_format: Literal["url", "b64_json"] | None = None
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(None, ge=1, le=100)
    style: str | None = None
    background: Literal["auto", "opaque"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    preset: str | None = Field(None, validation_alias=AliasChoices("preset", "mode"))
    loras: list[tuple[str, float]] | None = None
    prompt_weighting: bool | None = None
    watermark: str | None = None
    variation_seed: int | None = None
    variation_strength: float | None = None
    scale_to_size: bool | None = True
    control_images: list[ControlImageBody] | None = None
    reference_images: list[ReferenceImageBody] | None = None
    progress: bool | None = None
    client: Literal["openai", "cli"] | None = Field(None, validation_alias=AliasChoices("client", "channel"))
    backend: str | None = Field(None, validation_alias=AliasChoices("backend", "where"))
    accept_terms: bool | None = Field(None, validation_alias=AliasChoices("accept_terms", "agree"))

    def to_request(self, model_key: str, **fields: Any) -> GenerationRequest:
        width, height = _parse_size(self.size)
        style = self.style or "none"
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            style="none" if style in OPENAI_STYLES else style,
            model_key=model_key,
            width=self.width or width,
            height=self.height or height,
            seed=-1 if self.seed is None else self.seed,
            num_images=self.n or 1,
            image_format=self.output_format or "png",
            quality=self.output_compression or 95,
            backend=self.backend or LOCAL,
            **self._present(OWN_FIELDS),
            **fields,
        )

    def _present(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class EditRequest(ImageRequest):
    """The same for an image; without `mask` and `task`, what is transparent in it is changed.

    `strength` is 0.01 to 1; higher values change more of the image. `task` is upscale for an image
    of `scale` (2 or 4) times the size. `outpaint` are pixels to add on the left, top, right and
    bottom.
    """

    task: Literal["image_to_image", "inpaint", "upscale"] | None = None
    strength: float | None = None
    resize_mode: str | None = None
    fill_color: str | None = None
    mask_blur: int | None = None
    only_masked: bool | None = None
    outpaint: list[int] | None = None
    scale: int | None = None
    upscaler: str | None = None

    @field_validator("loras", "outpaint", *GUIDANCE_FIELDS, mode="before")
    @classmethod
    def _parse_list(cls, value: object) -> object:
        """A list in a form is JSON."""
        try:
            return json.loads(value) if isinstance(value, str) else value
        except (ValueError, RecursionError):
            return value

    def to_request(self, model_key: str, **fields: Any) -> GenerationRequest:
        task = self.task or ("inpaint" if fields.get("mask_image") or any(self.outpaint or ()) else "image_to_image")
        if task != "inpaint":
            fields.pop("mask_image", None)
        return super().to_request(model_key, **fields, task=task, **self._present(EDIT_FIELDS))


class OpenAIRoute(ApiRoute):
    """Answers errors with OpenAI's error object."""

    @staticmethod
    def error_response_for(error: CanvasError) -> Response:
        return JSONResponse(_error_body(error), error.http_status)


class OpenAIImagesApi:
    """The routes of the images API."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.router = APIRouter(prefix="/v1", route_class=OpenAIRoute, tags=["OpenAI images"])
        post, get = self.router.post, self.router.get
        errors: dict[int | str, dict[str, Any]] = {400: {"model": ErrorReply}, 404: {"model": ErrorReply}}
        post("/images/generations", response_model=None, responses={**errors, 200: IMAGES_RESPONSE})(self.generate)
        for path, endpoint, files in (
            ("/images/edits", self.edit, ("image", "mask")),
            ("/images/variations", self.create_variation, ("image",)),
        ):
            post(path, responses={**errors, 200: IMAGES_RESPONSE}, openapi_extra=_form(*files))(endpoint)
        get("/models", response_model=None, responses={200: {"model": ModelList}})(self.list_models)
        get("/models/{key}", response_model=None, responses={**errors, 200: {"model": ModelReply}})(self.retrieve_model)
        known = [
            (route.path_regex, route.methods or set()) for route in self.router.routes if isinstance(route, APIRoute)
        ]
        self.router.api_route("/{path:path}", methods=METHODS, include_in_schema=False)(_not_found(known))

    async def generate(self, params: ImageRequest, http_request: Request) -> Response:
        """Generate images from a prompt; with `stream` as server-sent events."""
        require_owner(http_request)
        fields = await self._store_guidance(params)
        return await self._submit(params.to_request(self._model_key(params), **fields), params, http_request)

    async def edit(self, http_request: Request) -> Response:
        """Redraw an image; only where the mask is transparent, or without a mask the image.

        With several files `image` the first is redrawn, and the others are reference images.
        """
        require_owner(http_request)
        async with http_request.form() as form:
            params = _parse_form(form)
            image, *references = await _read_files(form, "image")
            mask = await _read_file(form, "mask") if "mask" in form else None
        if mask is not None:
            if not await run_sync(_has_transparency, mask, "mask"):
                message = LazyMessage("The mask has no transparent pixels. Make the area to change transparent.")
                raise InvalidInput("mask", None, message=message)
        elif params.task is None and await run_sync(_has_transparency, image, "image"):
            mask = image
        return await self._submit_edit(params, image, mask, http_request, references)

    async def create_variation(self, http_request: Request) -> Response:
        """Generate variations of an image, from the prompt embedded in the file."""
        require_owner(http_request)
        async with http_request.form() as form:
            image = await _read_file(form, "image")
            params = _parse_form(form, await run_sync(_embedded_prompt, image))
        return await self._submit_edit(params, image, None, http_request)

    def list_models(self) -> Response:
        """List the models."""
        return JSONResponse({"object": "list", "data": [_model_object(spec) for spec in self._studio.models.values()]})

    def retrieve_model(self, key: str) -> Response:
        """One model by its key."""
        return JSONResponse(_model_object(get_model(key, self._studio.models)))

    async def _submit_edit(
        self,
        params: EditRequest,
        image: bytes,
        mask: bytes | None,
        http_request: Request,
        references: Sequence[bytes] = (),
    ) -> Response:
        fields = await self._store_guidance(params)
        for content in references:
            name = await upload_image(self._studio, content, "image")
            fields["reference_images"] = [*fields.get("reference_images", ()), {"image": name}]
        if mask is not None:
            fields["mask_image"] = await upload_mask(self._studio, mask, "mask", transparent=True)
        image_name = await upload_image(self._studio, image, "image")
        return await self._submit(
            params.to_request(self._model_key(params), **fields, image=image_name), params, http_request
        )

    async def _store_guidance(self, params: ImageRequest) -> dict[str, Any]:
        """The control and reference images with their files stored, as fields of a request."""
        fields = {}
        for name in GUIDANCE_FIELDS:
            if items := getattr(params, name):
                values = [item.model_dump(exclude_none=True) for item in items]
                fields[name] = await upload_guidance(self._studio, values, name)
        return fields

    def _model_key(self, params: ImageRequest) -> str:
        """The key of the named model; for a name of OpenAI's that of the default model."""
        default = self._studio.settings.model
        if params.model and params.model not in self._studio.models and OPENAI_MODELS.fullmatch(params.model):
            log.info("The model %s stands for the default model %s.", params.model, default)
            return default
        return params.model or default

    async def _submit(self, request: GenerationRequest, params: ImageRequest, http_request: Request) -> Response:
        owner = require_owner(http_request)
        if params.accept_terms:
            spec = get_model(request.model_key, self._studio.models)
            grant_consent = self._studio.remote_backends.grant_consent
            await run_database(grant_consent, owner, request.backend, spec)
            if spec.terms and request.backend == LOCAL:
                await run_database(self._studio.accept_licence, spec.key)
        job = await run_database(self._studio.submit, request, owner, params.client or "openai")
        if params.stream:
            headers = {MODEL_HEADER: job.model_key}
            return StreamingResponse(self._events(job, params), media_type="text/event-stream", headers=headers)
        images = await wait_for_job(job, http_request)
        return await run_sync(self._image_response, images, params, http_request)

    def _image_response(self, images: list[GeneratedImage], params: ImageRequest, http_request: Request) -> Response:
        data: list[dict[str, Any]] = []
        for image in images:
            # Clients expect one or the other, and send no `response_format` or one that is ignored.
            content = {"b64_json": read_as_base64(self._studio, image), "url": image_url(http_request, image)}
            data.append({**content, "revised_prompt": _revised_prompt(image), "seed": image.request.seed})
        first = images[0]
        return JSONResponse(
            {
                "created": int(first.created_at.timestamp()),
                "data": data,
                "output_format": first.request.image_format,
                "size": f"{first.request.width}x{first.request.height}",
                "quality": "auto",
                "background": "opaque",
                "usage": NO_USAGE,
            },
            headers={MODEL_HEADER: first.request.model_key},
        )

    async def _events(self, job: Job, params: ImageRequest) -> AsyncIterator[str]:
        num_partial = params.partial_images or 0
        sent, last_preview = 0, None
        async with aclosing(stream_job(job)) as updates:
            async for _ in updates:
                progress, preview = job.progress, job.preview
                if params.progress and not job.finished:
                    yield _progress_event(job)
                if preview is None or preview is last_preview:
                    continue
                if not isinstance(progress, ProgressUpdate):
                    continue
                if sent < num_partial and progress.fraction >= (sent + 1) / (num_partial + 1):
                    content = await run_sync(encode_preview, preview, params.output_format or "png")
                    yield _image_event("partial_image", job, content, partial_image_index=sent)
                    sent, last_preview = sent + 1, preview
        if job.error:
            yield f"event: error\ndata: {json.dumps(_error_body(job.error))}\n\n"
            return
        for image in job.images:
            content = await run_sync(read_as_base64, self._studio, image)
            yield _image_event("completed", job, content, usage=NO_USAGE, id=image.id)


def _error_body(error: CanvasError) -> dict[str, Any]:
    field = getattr(error, "field", None)
    return {
        "error": {
            "message": str(error),
            "type": "server_error" if error.http_status >= 500 else "invalid_request_error",
            "param": PARAM_NAMES.get(field, field) if field else None,
            "code": "model_not_found" if isinstance(error, UnknownModel) else error.code,
        }
    }


def _revised_prompt(image: GeneratedImage) -> str:
    """The prompt as the model got it, and what the record notes; clients show it to the user."""
    return " ".join([image.enhanced_prompt, *(f"[{note}]" for note in image.notes)]).strip()


def _not_found(known: list[tuple[re.Pattern[str], set[str]]]) -> Callable[..., Response]:
    """Answers unknown paths of this API with its error object."""

    def endpoint(http_request: Request) -> Response:
        path = http_request.url.path
        methods = [method for regex, allowed in known if regex.match(path) for method in allowed]
        if methods:
            message = f"The method of {path} must be {' or '.join(methods)} (got {http_request.method})."
        else:
            message = f"Unknown path {path}. This server has the images API and the list of models; see /docs."
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": "unknown_url"}
        headers = {"Allow": ", ".join(methods)} if methods else {}
        return JSONResponse({"error": error}, 405 if methods else 404, headers)

    return endpoint


def _parse_size(size: str | None) -> tuple[int | None, int | None]:
    if size is None or size == "auto":
        return None, None
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(size) < 32):
        raise InvalidInput("size", size, "WIDTHxHEIGHT in pixels, or auto")
    return int(width), int(height)


def _form(*files: str) -> dict[str, Any]:
    """The OpenAPI description of a multipart form with these files."""
    schema = EditRequest.model_json_schema()
    items = schema.pop("$defs")  # references to them would be looked up in the whole description
    for name, kind in (("control_images", "ControlImageBody"), ("reference_images", "ReferenceImageBody")):
        schema["properties"][name] = {"type": "array", "items": items[kind]}
    schema["properties"] |= {name: {"type": "string", "format": "binary"} for name in files}
    schema["required"] = ["image"]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


def _parse_form(form: FormData, prompt: str = "") -> EditRequest:
    values = {name: value for name, value in form.items() if isinstance(value, str) and value}
    try:
        return EditRequest.model_validate({"prompt": prompt, **values})
    except ValidationError as error:
        raise invalid_body(error) from error


async def _read_file(form: FormData, field: str) -> bytes:
    content, *others = await _read_files(form, field)
    if others:
        message = LazyMessage("Send one {field} (got {number}).", field=field, number=len(others) + 1)
        raise InvalidInput(field, len(others) + 1, message=message)
    return content


async def _read_files(form: FormData, field: str) -> list[bytes]:
    """At least one file; some clients send a list of one."""
    files = [*form.getlist(field), *form.getlist(f"{field}[]")]
    contents = [await file.read() for file in files if isinstance(file, UploadFile)]
    if not files or len(contents) < len(files):
        raise InvalidInput(field, files[0] if files else None, IMAGE_FILE)
    return contents


def _has_transparency(content: bytes, field: str) -> bool:
    """Whether an image marks an area to change by OpenAI's rule; raises InvalidInput."""
    mask = masks.transparency_mask(decode_image(content, field).image)
    return masks.binarize(mask).getbbox() is not None


def _embedded_prompt(content: bytes) -> str:
    try:
        infotext = read_text(io.BytesIO(content)).get("parameters", "")
    except StorageError as error:
        raise InvalidInput("image", f"{len(content)} bytes", IMAGE_FILE) from error
    prompt = read_infotext(infotext).values.get("prompt") if infotext else None
    return str(prompt or DEFAULT_VARIATION_PROMPT)


def _model_object(spec: ModelSpec) -> dict[str, Any]:
    owner = "magic-canvas" if spec.is_local else spec.name.partition("/")[0]
    return {"id": spec.key, "object": "model", "created": 0, "owned_by": owner}


def _progress_event(job: Job) -> str:
    body: dict[str, Any] = {"type": "progress", "status": job.status}
    if isinstance(job.progress, ProgressUpdate):
        body |= asdict(replace(job.progress, preview=None))
    return f"event: progress\ndata: {json.dumps(body)}\n\n"


def _image_event(name: str, job: Job, content: str, **more: Any) -> str:
    request = job.request
    assert request is not None  # noqa: S101 - generate jobs have one
    family = "image_generation" if request.task == "text_to_image" else "image_edit"
    body = {
        "type": f"{family}.{name}",
        "b64_json": content,
        "created_at": int(job.created_at.timestamp()),
        "size": f"{request.width}x{request.height}",
        "output_format": request.image_format,
        "quality": "auto",
        "background": "opaque",
        **more,
    }
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"
