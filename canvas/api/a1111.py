"""The `/sdapi/v1` family: pictures from pictures."""

from __future__ import annotations

import base64
import binascii
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from PIL import ImageOps
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from canvas.api.base import (
    ApiRoute,
    decode_base64,
    require_owner,
    submit,
    upload_image,
    wait_for_job,
)
from canvas.catalog import get_model
from canvas.engine import system_info
from canvas.errors import CanvasError, GenerationCancelled, InvalidInput, StorageError
from canvas.history.infotext import read_infotext, read_sampler, write_infotext
from canvas.history.metadata import read_text
from canvas.jobs.job import Job
from canvas.request import (
    UPSCALERS,
    GeneratedImage,
    GenerationRequest,
    ProgressUpdate,
)
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.studio import Studio

# The size that clients send when nobody chose one: it means the model's own.
DEFAULT_CLIENT_SIZE = (512, 512)


class TextToImage(BaseModel):
    """What clients send; a field of theirs without a counterpart here is let be."""

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    sampler_name: str | None = None
    sampler_index: str | None = None
    scheduler: str | None = None
    batch_size: int | None = Field(1, ge=1, le=16)
    n_iter: int | None = Field(1, ge=1, le=16)
    steps: int | None = None
    cfg_scale: float | None = None
    width: int | None = None
    height: int | None = None
    override_settings: dict[str, Any] | None = None
    send_images: bool | None = True

    def request(self, model_key: str) -> GenerationRequest:
        """The same wish in our words; raises InvalidInput."""
        size = (self.width, self.height)
        width, height = (None, None) if size == DEFAULT_CLIENT_SIZE else size
        return GenerationRequest(
            prompt=self.prompt or "",
            negative_prompt=self.negative_prompt or "",
            style=next((name for name in self.styles or () if name in STYLES), "none"),
            model_key=model_key,
            width=width,
            height=height,
            num_inference_steps=self.steps,
            guidance_scale=self.cfg_scale,
            scheduler=self._scheduler(),
            seed=-1 if self.seed is None else self.seed,
            num_images=(self.batch_size or 1) * (self.n_iter or 1),
        )

    def _scheduler(self) -> str | None:
        name = self.sampler_name or self.sampler_index
        if not name:
            return None
        # A schedule that we have not got with this sampler leaves the sampler's own.
        scheduler = read_sampler(name, self.scheduler or "") or read_sampler(name)
        if scheduler is None:
            raise InvalidInput("sampler_name", name, f"one of {', '.join(SCHEDULERS)}")
        return scheduler


class A1111Route(ApiRoute):
    """Answers failures as these clients read them."""

    @staticmethod
    def error_response_for(error: CanvasError) -> Response:
        """`detail` is what most clients show."""
        body = {"error": error.code, "detail": str(error), "errors": str(error)}
        return JSONResponse(body, error.http_status)


class A1111Api:
    """The family's routes over one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._lists = A1111Options(studio)
        self.router = APIRouter(prefix="/sdapi/v1", route_class=A1111Route, tags=["sdapi"])
        self.router.post("/txt2img", response_model=None)(self.text_to_image)
        self.router.get("/progress", response_model=None)(self.progress)
        self.router.post("/interrupt", response_model=None)(self.interrupt)
        self._lists.add_to(self.router)

    async def text_to_image(self, wish: TextToImage, request: Request) -> Response:
        """Pictures from a prompt; `info` is a text of JSON."""
        owner = require_owner(request)
        job = self._studio.submit(wish.request(self.model_of(wish, owner)), owner, "sdapi")
        return await self.answer(job, wish, request)

    def model_of(self, wish: TextToImage, owner: str) -> str:
        """The key of the model for this wish; raises UnknownModel."""
        chosen = (wish.override_settings or {}).get("sd_model_checkpoint")
        return self._lists.model_named(chosen) if chosen else self._lists.chosen_model(owner)

    async def answer(self, job: Job, wish: TextToImage, request: Request) -> Response:
        """The pictures of a job; `parameters` is the wish without the pictures in it."""
        try:
            images = await wait_for_job(job, request)
        except GenerationCancelled:  # these clients expect what was ready by then
            images = job.images
        contents = [self.content(image) for image in images] if wish.send_images else []
        return JSONResponse(
            {
                "images": contents,
                "parameters": wish.model_dump(exclude={"init_images", "mask"}),
                "info": json.dumps(_info(job, images)),
            }
        )

    def progress(self, request: Request, skip_current_image: bool = False) -> Response:
        """How far the caller's running job is."""
        jobs = [job for job in self._studio.jobs(require_owner(request)) if not job.finished]
        job = next((job for job in jobs if job.status != "queued"), None)
        step = job.progress if job and isinstance(job.progress, ProgressUpdate) else None
        preview = job.preview if job and not skip_current_image else None
        return JSONResponse(
            {
                "progress": step.fraction if step else 0.0,
                "eta_relative": (step.seconds_left or 0.0) if step else 0.0,
                "state": {
                    "skipped": False,
                    "interrupted": bool(job and job.cancelled.is_set()),
                    "stopping_generation": False,
                    "job": job.id if job else "",
                    "job_count": len(jobs),
                    "job_timestamp": _timestamp(job) if job else "0",
                    "job_no": step.image_index if step else 0,
                    "sampling_step": step.step if step else 0,
                    "sampling_steps": step.num_steps if step else 0,
                },
                "current_image": _encoded(preview) if preview else None,
                "textinfo": job.status if job else None,
            }
        )

    def interrupt(self, request: Request) -> Response:
        """Stop what the caller has running; what waits behind it goes on."""
        for job in self._studio.jobs(require_owner(request)):
            if job.status in ("loading", "running", "downloading"):
                job.cancel()
        return JSONResponse({})

    def content(self, image: GeneratedImage) -> str:
        """The file of a picture in base64."""
        return base64.b64encode(self._studio.image_path(image.filename).read_bytes()).decode()


def _info(job: Job, images: list[GeneratedImage]) -> dict[str, Any]:
    request = job.request
    assert request is not None  # noqa: S101 - generate jobs have one
    seeds = [image.request.seed for image in images]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * len(images),
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * len(images),
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * len(images),
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.scheduler,
        "cfg_scale": request.guidance_scale,
        "steps": request.num_inference_steps,
        "batch_size": len(images),
        "sd_model_name": request.model_key,
        "sd_model_hash": None,
        "styles": [] if request.style == "none" else [request.style],
        "infotexts": [write_infotext(image) for image in images],
        "job_timestamp": _timestamp(job),
        "index_of_first_image": 0,
    }


def _timestamp(job: Job) -> str:
    return f"{job.created_at:%Y%m%d%H%M%S}"


def _encoded(preview: Any) -> str:
    buffer = io.BytesIO()
    preview.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


CHECKPOINT = "sd_model_checkpoint"
# Asked for by clients when they connect; there is nothing of the kind here.
EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "latent-upscale-modes")


class PngInfo(BaseModel):
    """A picture in base64, with or without a `data:` prefix."""

    image: str


class A1111Options:
    """The lists over one studio, and which model each owner has chosen."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._chosen: dict[str, str] = {}

    def add_to(self, router: APIRouter) -> None:
        """Put the routes on the family's router."""
        routes: dict[str, Callable[..., Response]] = {
            "/sd-models": self.models,
            "/samplers": self.samplers,
            "/schedulers": self.schedulers,
            "/prompt-styles": self.styles,
            "/options": self.options,
            "/memory": self.memory,
            "/cmd-flags": self.empty_object,
            "/scripts": self.scripts,
            "/loras": self.loras,
            "/embeddings": self.embeddings,
        }
        for path, endpoint in routes.items():
            router.get(path, response_model=None)(endpoint)
        for name in EMPTY:
            router.get(f"/{name}", response_model=None)(self.empty)
        router.post("/options", response_model=None)(self.set_options)
        router.post("/refresh-checkpoints", response_model=None)(self.empty_object)
        router.post("/png-info", response_model=None)(self.png_info)

    def chosen_model(self, owner: str) -> str:
        """The key of the model that this owner's pictures are made with."""
        return self._chosen.get(owner, self._studio.settings.model)

    def model_named(self, title: object) -> str:
        """The key of the model with that title; raises UnknownModel."""
        return get_model(str(title), self._studio.models).key

    def models(self) -> Response:
        """The models; the title is what `options` takes."""
        return JSONResponse(
            [
                {
                    "title": spec.key,
                    "model_name": spec.key,
                    "hash": None,
                    "sha256": None,
                    "filename": spec.public_name,
                    "config": None,
                }
                for spec in self._studio.models.values()
            ]
        )

    def samplers(self) -> Response:
        """The schedulers under these clients' name for them."""
        return JSONResponse([{"name": name, "aliases": [], "options": {}} for name in SCHEDULERS])

    def schedulers(self) -> Response:
        """The noise schedules that a sampler can be asked for with."""
        labels = {"automatic": "Automatic", "karras": "Karras"}
        return JSONResponse(
            [
                {"name": name, "label": label, "aliases": None}
                | {"default_rho": -1, "need_inner_model": False}
                for name, label in labels.items()
            ]
        )

    def styles(self) -> Response:
        """The styles with their words."""
        return JSONResponse(
            [
                {"name": name, "prompt": style.words, "negative_prompt": style.negative_words}
                for name, style in STYLES.items()
                if style.words
            ]
        )

    def options(self, request: Request) -> Response:
        """The caller's options: the model."""
        return JSONResponse(
            {
                CHECKPOINT: self.chosen_model(require_owner(request)),
                "sd_checkpoint_hash": None,
                "samples_format": "png",
            }
        )

    def set_options(self, options: dict[str, Any], request: Request) -> Response:
        """Choose the caller's model; what else is sent is let be."""
        owner = require_owner(request)
        if options.get(CHECKPOINT):
            self._chosen[owner] = self.model_named(options[CHECKPOINT])
        return JSONResponse(None)

    def memory(self) -> Response:
        """Memory of this process and its machine, in bytes."""
        ram = {
            "free": system_info.free_memory(),
            "used": system_info.resident_memory(),
            "total": system_info.total_memory(),
        }
        return JSONResponse({"ram": ram, "cuda": {"error": "not told"}})

    def scripts(self) -> Response:
        """None of these clients' extensions."""
        return JSONResponse({"txt2img": [], "img2img": []})

    def loras(self) -> Response:
        """The LoRA files, by the name that `<lora:name:weight>` in a prompt takes."""
        return JSONResponse(
            [
                {"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}}
                for name in self._studio.inputs.list_loras()
            ]
        )

    def embeddings(self) -> Response:
        """None."""
        return JSONResponse({"loaded": {}, "skipped": {}})

    def empty(self) -> Response:
        """An empty list."""
        return JSONResponse([])

    def empty_object(self) -> Response:
        """An empty object."""
        return JSONResponse({})

    def png_info(self, body: PngInfo) -> Response:
        """The settings inside a picture file."""
        texts = _texts_in(body.image)
        infotext = texts.get("parameters", "")
        values = dict(read_infotext(infotext).values) if infotext else {}
        return JSONResponse({"info": infotext, "items": texts, "parameters": values})


def _texts_in(encoded: str) -> dict[str, str]:
    allowed = "a PNG, JPEG or WebP file in base64"
    try:
        content = base64.b64decode(encoded.partition("base64,")[2] or encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("image", encoded, allowed) from error
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture"
        path.write_bytes(content)
        try:
            return read_text(path)
        except StorageError as error:
            raise InvalidInput("image", encoded, allowed) from error


A1111_RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad"}


class ImageToImage(TextToImage):
    """What clients send; of several pictures the first counts."""

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: int | None = None
    inpainting_mask_invert: int | bool | None = 0
    inpaint_full_res: bool | None = False
    resize_mode: int | None = 0
    denoising_strength: float | None = 0.75


class SingleImage(BaseModel):
    """A picture to enlarge."""

    image: str
    upscaling_resize: float | None = 2
    upscaler_1: str | None = None


class A1111Edits:
    """The routes of the family that start from a picture."""

    def __init__(self, studio: Studio, sdapi: A1111Api) -> None:
        self._studio = studio
        self._sdapi = sdapi

    def add_to(self, router: APIRouter) -> None:
        """Put the routes on the family's router."""
        router.post("/img2img", response_model=None)(self.image_to_image)
        router.post("/extra-single-image", response_model=None)(self.upscale)
        router.get("/upscalers", response_model=None)(self.upscalers)

    async def image_to_image(self, wish: ImageToImage, request: Request) -> Response:
        """Redraw a picture, or with a mask the part of it that is white there."""
        owner = require_owner(request)
        if not wish.init_images:
            raise InvalidInput("init_images", wish.init_images, "a list with a picture in base64")
        image = decode_base64(wish.init_images[0], "init_images")
        wanted = replace(
            wish.request(self._sdapi.model_of(wish, owner)),
            task="inpaint" if wish.mask else "image_to_image",
            image=await upload_image(self._studio, image, "init_images"),
            mask_image=await self._mask(wish),
            strength=wish.denoising_strength,
            only_masked=bool(wish.inpaint_full_res),
            resize_mode=A1111_RESIZE_MODES.get(wish.resize_mode or 0, A1111_RESIZE_MODES[0]),
        )
        if wish.mask_blur is not None:
            wanted = replace(wanted, mask_blur=wish.mask_blur)
        job = await submit(self._studio, wanted, owner, "sdapi")
        return await self._sdapi.answer(job, wish, request)

    async def _mask(self, wish: ImageToImage) -> str | None:
        if not wish.mask:
            return None
        name = await upload_image(self._studio, decode_base64(wish.mask, "mask"), "mask")
        if not wish.inpainting_mask_invert:
            return name
        mask = self._studio.inputs.open_image(name, None).convert("L")
        return await upload_image(self._studio, ImageOps.invert(mask), "mask")

    async def upscale(self, wish: SingleImage, request: Request) -> Response:
        """A picture two or four times as large."""
        owner = require_owner(request)
        names = {name.lower(): name for name in UPSCALERS}
        upscaler = names.get((wish.upscaler_1 or "").lower(), UPSCALERS[0])
        image = await upload_image(self._studio, decode_base64(wish.image, "image"), "image")
        scale = wish.upscaling_resize or 2
        wanted = GenerationRequest(
            "",
            task="upscale",
            image=image,
            scale=int(scale) if scale == int(scale) else 0,
            upscaler=upscaler,
            model_key=self._studio.settings.model,
        )
        job = await submit(self._studio, wanted, owner, "sdapi")
        [enlarged] = await wait_for_job(job, request)
        return JSONResponse({"html_info": "", "image": self._sdapi.content(enlarged)})

    def upscalers(self) -> Response:
        """The ways to enlarge, by name."""
        return JSONResponse(
            [
                {"name": name, "model_name": None, "model_path": None, "model_url": None}
                | {"scale": 4}
                for name in UPSCALERS
            ]
        )
