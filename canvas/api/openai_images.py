"""The images family of the OpenAI API: `/v1/images/edits` and `/v1/images/variations`."""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from canvas.api.base import (
    ALLOWED,
    ApiRoute,
    invalid_body,
    mask_from_alpha,
    require_owner,
    stream_job,
    submit,
    upload_image,
    wait_for_job,
)
from canvas.catalog import get_model
from canvas.errors import CanvasError, InvalidInput, StorageError, UnknownModel
from canvas.history.infotext import read_infotext
from canvas.history.metadata import read_text
from canvas.request import GeneratedImage, GenerationRequest, ProgressUpdate

if TYPE_CHECKING:
    from canvas.jobs.job import Job
    from canvas.studio import Studio

# How this family names our fields.
NAMES = {
    "model_key": "model",
    "width": "size",
    "height": "size",
    "num_images": "n",
    "image_format": "output_format",
    "quality": "output_compression",
}
OPENAI_STYLES = ("vivid", "natural")  # of the models this API was made for


class ImageRequest(BaseModel):
    """What clients send; beside the family's own fields those of ours, and unknown ones are let be.

    `model` is a key that `/v1/models` lists; `size` is WxH, or auto for the model's own. Our
    own command line says so in `channel`; with `progress`, a stream tells it each step, too.
    `where` may be huggingface or remote: then `agree` says that the terms were read.
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
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    negative_prompt: str | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    seed: int | None = None
    progress: bool | None = None
    channel: Literal["openai", "cli"] | None = None
    where: str | None = None
    agree: bool | None = None

    def request(self, default_model: str) -> GenerationRequest:
        """The same wish in our words; raises InvalidInput."""
        width, height = read_size(self.size)
        style = self.style or "none"
        return GenerationRequest(
            prompt=self.prompt,
            negative_prompt=self.negative_prompt or "",
            style="none" if style in OPENAI_STYLES else style,
            model_key=self.model or default_model,
            width=self.width or width,
            height=self.height or height,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            scheduler=self.scheduler,
            seed=-1 if self.seed is None else self.seed,
            num_images=self.n or 1,
            image_format=self.output_format or "png",
            quality=self.output_compression or 95,
            backend=self.where or "here",
        )


def read_size(size: str | None) -> tuple[int | None, int | None]:
    """Width and height of "WxH"; None for both where the model is to choose."""
    if size is None or size == "auto":
        return None, None
    width, _, height = size.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and len(size) < 32):
        raise InvalidInput("size", size, "WIDTHxHEIGHT in pixels, or auto")
    return int(width), int(height)


def error_body(error: CanvasError) -> dict[str, Any]:
    """The family's error object."""
    field = getattr(error, "field", None)
    code = "model_not_found" if isinstance(error, UnknownModel) else error.code
    kind = "server_error" if error.http_status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": NAMES.get(field, field) if field else None,
            "code": code,
        }
    }


class OpenAIRoute(ApiRoute):
    """Answers failures as error objects."""

    @staticmethod
    def error_response_for(error: CanvasError) -> Response:
        """An error object with its status."""
        return JSONResponse(error_body(error), error.http_status)


class OpenAI:
    """The family's routes over one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.router = APIRouter(prefix="/v1", route_class=OpenAIRoute, tags=["OpenAI images"])
        self.router.post("/images/generations", response_model=None)(self.generate)
        self.router.get("/models", response_model=None)(self.models)
        self.router.get("/models/{key}", response_model=None)(self.model)

    async def generate(self, wish: ImageRequest, request: Request) -> Response:
        """Pictures from a prompt, in one answer or as server-sent events."""
        owner = require_owner(request)
        wanted = wish.request(self._studio.settings.model)
        if wish.agree:
            spec = get_model(wanted.model_key, self._studio.models)
            self._studio.remote_backends.grant_consent(owner, wanted.backend, spec)
        job = self._studio.submit(wanted, owner, wish.channel or "openai")
        return await self.answer(job, wish, request)

    async def answer(self, job: Job, wish: ImageRequest, request: Request) -> Response:
        """The pictures of a job as the wish says: in one answer or as events."""
        if wish.stream:
            return StreamingResponse(self._events(job, wish), media_type="text/event-stream")
        images = await wait_for_job(job, request)
        data = [self._datum(image, wish, request) for image in images]
        first = images[0]
        return JSONResponse(
            {
                "created": int(first.created_at.timestamp()),
                "data": data,
                "output_format": first.request.image_format,
                "size": f"{first.request.width}x{first.request.height}",
            }
        )

    def models(self) -> Response:
        """The models that can be asked for."""
        models = [self._model(key) for key in self._studio.models]
        return JSONResponse({"object": "list", "data": models})

    def model(self, key: str) -> Response:
        """One model."""
        get_model(key, self._studio.models)
        return JSONResponse(self._model(key))

    def _model(self, key: str) -> dict[str, Any]:
        owner = self._studio.models[key].name.partition("/")[0]
        own = self._studio.models[key].is_local
        return {
            "id": key,
            "object": "model",
            "created": 0,
            "owned_by": "magic-canvas" if own else owner,
        }

    def _datum(self, image: GeneratedImage, wish: ImageRequest, request: Request) -> dict[str, Any]:
        told = {"revised_prompt": image.enhanced_prompt, "seed": image.request.seed}
        if wish.response_format == "b64_json":
            return {"b64_json": self._content(image), **told}
        return {"url": str(request.url_for("picture", filename=image.filename)), **told}

    def _content(self, image: GeneratedImage) -> str:
        return base64.b64encode(self._studio.image_path(image.filename).read_bytes()).decode()

    async def _events(self, job: Job, wish: ImageRequest) -> AsyncIterator[str]:
        wanted = wish.partial_images or 0
        sent, last = 0, None
        async with aclosing(stream_job(job)) as changes:
            async for _ in changes:
                step, preview = job.progress, job.preview
                if wish.progress and not job.finished:
                    yield _progress(job)
                if not isinstance(step, ProgressUpdate) or preview is None or preview is last:
                    continue
                if sent < wanted and step.fraction >= (sent + 1) / (wanted + 1):
                    content = _encoded(preview, wish.output_format or "png")
                    yield _event("partial_image", job, content, partial_image_index=sent)
                    sent, last = sent + 1, preview
        if job.error:
            yield f"event: error\ndata: {json.dumps(error_body(job.error))}\n\n"
            return
        for image in job.images:
            content = self._content(image)
            yield _event("completed", job, content, usage=_USAGE, id=image.id)


# The family counts tokens; pictures made at home cost none.
_USAGE = {
    "input_tokens": 0,
    "input_tokens_details": {"image_tokens": 0, "text_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


def _progress(job: Job) -> str:
    told: dict[str, Any] = {"type": "progress", "status": job.status}
    if isinstance(step := job.progress, ProgressUpdate):
        told |= asdict(replace(step, preview=None))
    return f"event: progress\ndata: {json.dumps(told)}\n\n"


def _event(name: str, job: Job, content: str, **more: Any) -> str:
    request = job.request
    assert request is not None  # noqa: S101 - generate jobs have one
    body = {
        "type": f"image_generation.{name}",
        "b64_json": content,
        "created_at": int(job.created_at.timestamp()),
        "size": f"{request.width}x{request.height}",
        "output_format": request.image_format,
        "quality": "auto",
        "background": "opaque",
        **more,
    }
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n"


def _encoded(preview: Any, image_format: str) -> str:
    buffer = io.BytesIO()
    preview.save(buffer, image_format)
    return base64.b64encode(buffer.getvalue()).decode()


DEFAULT_VARIATION_PROMPT = "the same scene"  # what a variation shows where the file does not say
FILE = {"type": "string", "format": "binary"}


class EditRequest(ImageRequest):
    """Beside the family's fields, how much is redrawn (0.01 to 1)."""

    strength: float | None = None


def _described(*files: str) -> dict[str, Any]:
    schema = EditRequest.model_json_schema()
    schema["properties"] |= dict.fromkeys(files, FILE)
    schema["required"] = ["image"]
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


class Edits:
    """The routes of the family that start from a picture."""

    def __init__(self, studio: Studio, openai: OpenAI) -> None:
        self._studio = studio
        self._openai = openai

    def add_to(self, router: APIRouter) -> None:
        """Put the routes on the family's router."""
        add = router.post("/images/edits", openapi_extra=_described("image", "mask"))
        add(self.edit)
        add = router.post("/images/variations", openapi_extra=_described("image"))
        add(self.variations)

    async def edit(self, request: Request) -> Response:
        """Redraw a picture after a prompt; with a mask, only where that is transparent."""
        owner = require_owner(request)
        async with request.form() as form:
            wish = _wish(form)
            image = await _file(form, "image")
            mask = await _file(form, "mask") if "mask" in form else None
        return await self._answer(wish, image, mask, owner, request)

    async def variations(self, request: Request) -> Response:
        """Other pictures like this one; the prompt is that in the file, if there is one."""
        owner = require_owner(request)
        async with request.form() as form:
            image = await _file(form, "image")
            wish = _wish(form, _prompt_in(image))
        return await self._answer(wish, image, None, owner, request)

    async def _answer(
        self, wish: EditRequest, image: bytes, mask: bytes | None, owner: str, request: Request
    ) -> Response:
        holes = mask_from_alpha(mask) if mask is not None else None
        wanted = replace(
            wish.request(self._studio.settings.model),
            task="inpaint" if holes else "image_to_image",
            image=await upload_image(self._studio, image, "image"),
            mask_image=await upload_image(self._studio, holes, "mask") if holes else None,
            strength=wish.strength,
        )
        job = await submit(self._studio, wanted, owner, "openai")
        return await self._openai.answer(job, wish, request)


def _wish(form: FormData, prompt: str = "") -> EditRequest:
    values = {name: value for name, value in form.items() if isinstance(value, str) and value}
    try:
        return EditRequest.model_validate({"prompt": prompt, **values})
    except ValidationError as error:
        raise invalid_body(error) from error


async def _file(form: FormData, field: str) -> bytes:
    # Some clients send a list, of which the first is the picture.
    file = form.get(field) or form.get(f"{field}[]")
    if not isinstance(file, UploadFile):
        raise InvalidInput(field, file, ALLOWED)
    return await file.read()


def _prompt_in(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            infotext = read_text(path).get("parameters", "")
        except StorageError as error:
            raise InvalidInput("image", f"{len(content)} bytes", ALLOWED) from error
    return (
        str(read_infotext(infotext).values.get("prompt", DEFAULT_VARIATION_PROMPT))
        if infotext
        else DEFAULT_VARIATION_PROMPT
    )
