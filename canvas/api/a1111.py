"""The API of AUTOMATIC1111's web UI: `/sdapi/v1/…`, in its own words."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from canvas.api.base import (
    ApiRoute,
    encode_preview,
    read_as_base64,
    require_owner,
    run_database,
    upload_image,
    upload_mask,
    wait_for_job,
)
from canvas.catalog import get_model
from canvas.engine import system_info
from canvas.errors import CanvasError, GenerationCancelled, InvalidInput, StorageError
from canvas.history.infotext import read_infotext, read_sampler, write_infotext
from canvas.history.metadata import read_text
from canvas.image_formats import decode_base64
from canvas.jobs.job import Job
from canvas.prompt_syntax import has_weight_syntax
from canvas.request import UPSCALERS, GeneratedImage, GenerationRequest, ProgressUpdate, with_old_names
from canvas.schedulers import SCHEDULERS
from canvas.studio import Studio
from canvas.styles import STYLES

CHECKPOINT = "sd_model_checkpoint"
# What clients send when the user chose no size; read as the model's native size.
DEFAULT_CLIENT_SIZE = (512, 512)
RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad"}
SCHEDULES = {"automatic": "Automatic", "karras": "Karras"}
# What clients request when they connect, and what they get.
FIXED_RESPONSES: dict[str, Any] = {
    "/sd-vae": [],
    "/hypernetworks": [],
    "/face-restorers": [],
    "/latent-upscale-modes": [],
    "/cmd-flags": {},
    "/scripts": {"txt2img": [], "img2img": []},
    "/embeddings": {"loaded": {}, "skipped": {}},
}


class TextToImage(BaseModel):
    """The body of `txt2img`; fields without a counterpart here are ignored."""

    prompt: str | None = ""
    negative_prompt: str | None = ""
    styles: list[str] | None = None
    seed: int | None = -1
    subseed: int | None = -1
    subseed_strength: float | None = 0
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

    def to_request(self, model_key: str, **fields: Any) -> GenerationRequest:
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
            **self._variation(),
            # Clients of this API expect weights to act.
            prompt_weighting=any(map(has_weight_syntax, (self.prompt or "", self.negative_prompt or ""))),
            **fields,
        )

    def _variation(self) -> dict[str, Any]:
        if not self.subseed_strength:
            return {}
        seed = random.randrange(2**32) if self.subseed in (None, -1) else self.subseed
        return {"variation_seed": seed, "variation_strength": self.subseed_strength}

    def _scheduler(self) -> str | None:
        name = self.sampler_name or self.sampler_index
        if not name:
            return None
        # A schedule that is not supported for this sampler is ignored.
        scheduler = read_sampler(name, self.scheduler or "") or read_sampler(name)
        if scheduler is None:
            raise InvalidInput("sampler_name", name, f"one of {', '.join(SCHEDULERS)}")
        return scheduler


class ImageToImage(TextToImage):
    """The body of `img2img`; `init_images` holds one image."""

    init_images: list[str] | None = None
    mask: str | None = None
    mask_blur: int | None = None
    inpainting_mask_invert: int | bool | None = 0
    inpaint_full_res: bool | None = False
    resize_mode: int | None = 0
    denoising_strength: float | None = 0.75


class SingleImage(BaseModel):
    """The body of `extra-single-image`."""

    image: str
    upscaling_resize: float | None = 2
    upscaler_1: str | None = None


class PngInfo(BaseModel):
    """The body of `png-info`: an image in base64, with or without a `data:` prefix."""

    image: str


class A1111Route(ApiRoute):
    """Answers errors in the format of this API."""

    @staticmethod
    def error_response_for(error: CanvasError) -> Response:
        """`detail` is what most clients show."""
        return JSONResponse({"error": error.code, "detail": str(error), "errors": str(error)}, error.http_status)


class A1111Api:
    """The routes; the model that `options` selects is kept per owner."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._selected_models: dict[str, str] = {}
        self.router = APIRouter(prefix="/sdapi/v1", route_class=A1111Route, tags=["sdapi"])
        routes: dict[str, dict[str, Callable[..., Any]]] = {
            "POST": {
                "/txt2img": self.txt2img,
                "/img2img": self.img2img,
                "/extra-single-image": self.extra_single_image,
                "/png-info": self.png_info,
                "/interrupt": self.interrupt,
                "/options": self.set_options,
                "/refresh-checkpoints": _fixed_response("/refresh-checkpoints", {}),
            },
            "GET": {
                "/progress": self.progress,
                "/options": self.options,
                "/sd-models": self.sd_models,
                "/samplers": self.samplers,
                "/schedulers": self.schedulers,
                "/upscalers": self.upscalers,
                "/prompt-styles": self.prompt_styles,
                "/loras": self.loras,
                "/memory": self.memory,
                **{path: _fixed_response(path, body) for path, body in FIXED_RESPONSES.items()},
            },
        }
        for method, endpoints in routes.items():
            for path, endpoint in endpoints.items():
                self.router.api_route(path, methods=[method], response_model=None)(endpoint)

    async def txt2img(self, params: TextToImage, http_request: Request) -> Response:
        """Generate images from a prompt; `info` is a JSON string."""
        request = params.to_request(self._model_key(params, http_request))
        return await self._submit(request, params, http_request)

    async def img2img(self, params: ImageToImage, http_request: Request) -> Response:
        """Redraw an image; with a mask only where that is white, or painted on a clear layer."""
        if len(params.init_images or ()) != 1:
            raise InvalidInput("init_images", len(params.init_images or ()), "a list with one image in base64")
        assert params.init_images  # noqa: S101 - it has one element
        fields: dict[str, Any] = {"task": "image_to_image"}
        if params.mask:
            invert = bool(params.inpainting_mask_invert)
            mask = await run_sync(decode_base64, params.mask, "mask")
            mask_image = await upload_mask(self._studio, mask, "mask", invert=invert)
            fields = {"task": "inpaint", "mask_image": mask_image}
        if params.mask_blur is not None:
            fields["mask_blur"] = params.mask_blur
        request = params.to_request(
            self._model_key(params, http_request),
            **fields,
            image=await self._upload(params.init_images[0], "init_images"),
            strength=params.denoising_strength,
            only_masked=bool(params.inpaint_full_res),
            resize_mode=RESIZE_MODES.get(params.resize_mode or 0, RESIZE_MODES[0]),
        )
        return await self._submit(request, params, http_request)

    async def extra_single_image(self, params: SingleImage, http_request: Request) -> Response:
        """Upscale an image by 2 or 4."""
        names = {name.lower(): name for name in UPSCALERS}
        scale = params.upscaling_resize or 2
        request = GenerationRequest(
            "",
            task="upscale",
            image=await self._upload(params.image, "image"),
            scale=int(scale) if scale == int(scale) else 0,
            upscaler=names.get((params.upscaler_1 or "").lower(), UPSCALERS[0]),
            model_key=self._studio.settings.model,
        )
        job = await run_database(self._studio.submit, request, require_owner(http_request), "sdapi")
        [image] = await wait_for_job(job, http_request)
        return JSONResponse({"html_info": "", "image": await run_sync(read_as_base64, self._studio, image)})

    def png_info(self, params: PngInfo) -> Response:
        """The settings embedded in an image file."""
        try:
            items = read_text(io.BytesIO(decode_base64(params.image, "image")))
        except StorageError as error:
            raise InvalidInput("image", params.image, "a PNG, JPEG or WebP file in base64") from error
        infotext = items.get("parameters", "")
        values = with_old_names(read_infotext(infotext).values) if infotext else {}
        return JSONResponse({"info": infotext, "items": items, "parameters": values})

    def progress(self, http_request: Request, skip_current_image: bool = False) -> Response:
        """The progress of the caller's running job."""
        jobs = [job for job in self._studio.jobs(require_owner(http_request)) if not job.finished]
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
                "current_image": encode_preview(preview, "png") if preview else None,
                "textinfo": job.status if job else None,
            }
        )

    def interrupt(self, http_request: Request) -> Response:
        """Cancel the caller's running jobs; queued ones stay."""
        for job in self._studio.jobs(require_owner(http_request)):
            if job.status in ("loading", "running", "downloading"):
                job.cancel()
        return JSONResponse({})

    def options(self, http_request: Request) -> Response:
        """The caller's selected model."""
        selected = self._selected_model(require_owner(http_request))
        return JSONResponse({CHECKPOINT: selected, "sd_checkpoint_hash": None, "samples_format": "png"})

    def set_options(self, options: dict[str, Any], http_request: Request) -> Response:
        """Select the caller's model; other options are ignored."""
        owner = require_owner(http_request)
        if options.get(CHECKPOINT):
            self._selected_models[owner] = get_model(str(options[CHECKPOINT]), self._studio.models).key
        return JSONResponse(None)

    def sd_models(self) -> Response:
        """List the models; `title` is what `options` takes."""
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
        """List the schedulers, which this API calls samplers."""
        return JSONResponse([{"name": name, "aliases": [], "options": {}} for name in SCHEDULERS])

    def schedulers(self) -> Response:
        """List the noise schedules of the samplers."""
        fixed = {"aliases": None, "default_rho": -1, "need_inner_model": False}
        return JSONResponse([{"name": name, "label": label, **fixed} for name, label in SCHEDULES.items()])

    def upscalers(self) -> Response:
        """List the upscalers."""
        fixed = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
        return JSONResponse([{"name": name, **fixed} for name in UPSCALERS])

    def prompt_styles(self) -> Response:
        """List the styles with the words they add."""
        return JSONResponse(
            [
                {"name": name, "prompt": style.words, "negative_prompt": style.negative_words}
                for name, style in STYLES.items()
                if style.words
            ]
        )

    def loras(self) -> Response:
        """List the LoRA files; `name` is what `<lora:name:weight>` in a prompt takes."""
        return JSONResponse(
            [
                {"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}}
                for name in self._studio.inputs.list_loras()
            ]
        )

    def memory(self) -> Response:
        """RAM of this process and this computer, in bytes."""
        ram = {
            "free": system_info.free_memory(),
            "used": system_info.resident_memory(),
            "total": system_info.total_memory(),
        }
        return JSONResponse({"ram": ram, "cuda": {"error": "not available"}})

    def _selected_model(self, owner: str) -> str:
        return self._selected_models.get(owner, self._studio.settings.model)

    def _model_key(self, params: TextToImage, http_request: Request) -> str:
        """The key of the model that `override_settings` or `options` name."""
        title = (params.override_settings or {}).get(CHECKPOINT)
        if title:
            return get_model(str(title), self._studio.models).key
        return self._selected_model(require_owner(http_request))

    async def _upload(self, encoded: str, field: str) -> str:
        """Store a base64 image; returns its name."""
        content = await run_sync(decode_base64, encoded, field)
        return await upload_image(self._studio, content, field)

    async def _submit(self, request: GenerationRequest, params: TextToImage, http_request: Request) -> Response:
        job = await run_database(self._studio.submit, request, require_owner(http_request), "sdapi")
        try:
            images = await wait_for_job(job, http_request)
        except GenerationCancelled:  # clients expect the images that are finished by then
            images = job.images
        return await run_sync(self._images_response, job, images, params)

    def _images_response(self, job: Job, images: list[GeneratedImage], params: TextToImage) -> Response:
        sent = images if params.send_images else []
        return JSONResponse(
            {
                "images": [read_as_base64(self._studio, image) for image in sent],
                "parameters": params.model_dump(exclude={"init_images", "mask"}),
                "info": json.dumps(_info(job, images)),
            }
        )


def _fixed_response(path: str, body: Any) -> Callable[[], Response]:
    def endpoint() -> Response:
        return JSONResponse(body)

    endpoint.__name__ = path.strip("/").replace("-", "_")  # what /docs shows
    return endpoint


def _info(job: Job, images: list[GeneratedImage]) -> dict[str, Any]:
    request = job.request
    assert request is not None  # noqa: S101 - generate jobs have one
    return {
        "prompt": request.prompt,
        "all_prompts": [image.request.prompt for image in images],
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [image.request.negative_prompt for image in images],
        "seed": request.seed,
        "all_seeds": [image.request.seed for image in images],
        "subseed": _subseed(request),
        "all_subseeds": [_subseed(image.request) for image in images],
        "subseed_strength": request.variation_strength,
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


def _subseed(request: GenerationRequest) -> int:
    return -1 if request.variation_seed is None else request.variation_seed


def _timestamp(job: Job) -> str:
    return f"{job.created_at:%Y%m%d%H%M%S}"
