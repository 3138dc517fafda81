"""The API of AUTOMATIC1111's web UI: `/sdapi/v1/…`, in its own words."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from canvas.api import replies
from canvas.api.a1111_bodies import (
    CHECKPOINT,
    REALESRGAN,
    ImageBatch,
    ImageToImage,
    NotImplementedHere,
    PngInfo,
    SingleImage,
    TextToImage,
    Upscale,
)
from canvas.api.a1111_controlnet import A1111Route, read_units
from canvas.api.base import (
    encode_preview,
    read_as_base64,
    require_owner,
    run_database,
    upload_base64,
    upload_guidance,
    upload_mask,
    wait_for_job,
)
from canvas.catalog import get_model
from canvas.dynamic_prompts import escape
from canvas.engine import system_info, upscale
from canvas.errors import ContentBlocked, GenerationCancelled, InvalidInput, StorageError
from canvas.guidance import GUIDANCE_FIELDS
from canvas.history.infotext import OWN_VERSION, read_infotext, write_infotext
from canvas.history.metadata import read_text
from canvas.image_formats import decode_base64
from canvas.jobs.job import Job
from canvas.request import UPSCALERS, GeneratedImage, GenerationRequest, ProgressUpdate, with_old_names
from canvas.schedulers import SCHEDULERS
from canvas.studio import Studio
from canvas.styles import STYLES

SCHEDULES = {"automatic": "Automatic", "karras": "Karras"}
# What clients request when they connect, and what they get.
FIXED_RESPONSES: dict[str, Any] = {
    "/sd-vae": [],
    "/hypernetworks": [],
    "/face-restorers": [],
    "/latent-upscale-modes": [],
    "/cmd-flags": {},
    "/scripts": {"txt2img": [], "img2img": []},
    "/script-info": [],
    "/embeddings": {"loaded": {}, "skipped": {}},
}
# The lists are read anew for each request, and models are loaded when they are used.
WITHOUT_WORK = ("/refresh-checkpoints", "/refresh-loras", "/refresh-vae", "/refresh-embeddings", "/reload-checkpoint")
NOT_IMPLEMENTED = {
    "/skip": "A single image of a batch cannot be skipped; /interrupt ends the job.",
    "/interrogate": "This server cannot describe images.",
}


class A1111Api:
    """The routes; the model that `options` selects is kept per owner."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._selected_models: dict[str, str] = {}
        self.router = APIRouter(prefix="/sdapi/v1", route_class=A1111Route, tags=["sdapi"])
        # Method, path, endpoint, and for /docs the answer
        routes: list[tuple[str, str, Callable[..., Any], Any]] = [
            *(("POST", path, _fixed_response(path, {}), dict) for path in WITHOUT_WORK),
            *(("POST", path, _not_implemented(path, message), dict) for path, message in NOT_IMPLEMENTED.items()),
            ("POST", "/txt2img", self.txt2img, replies.A1111Images),
            ("POST", "/img2img", self.img2img, replies.A1111Images),
            ("POST", "/extra-single-image", self.extra_single_image, replies.A1111Extra),
            ("POST", "/extra-batch-images", self.extra_batch_images, replies.A1111ExtraBatch),
            ("POST", "/unload-checkpoint", self.unload_checkpoint, dict),
            ("POST", "/png-info", self.png_info, replies.A1111PngInfo),
            ("POST", "/interrupt", self.interrupt, dict),
            ("POST", "/options", self.set_options, None),
            ("GET", "/progress", self.progress, replies.A1111Progress),
            ("GET", "/options", self.options, replies.A1111Options),
            ("GET", "/sd-models", self.sd_models, list[replies.A1111Model]),
            ("GET", "/samplers", self.samplers, list[replies.A1111Sampler]),
            ("GET", "/schedulers", self.schedulers, list[replies.A1111Schedule]),
            ("GET", "/upscalers", self.upscalers, list[replies.A1111Upscaler]),
            ("GET", "/realesrgan-models", self.realesrgan_models, list[dict[str, Any]]),
            ("GET", "/prompt-styles", self.prompt_styles, list[replies.A1111Style]),
            ("GET", "/loras", self.loras, list[replies.A1111Lora]),
            ("GET", "/memory", self.memory, replies.A1111Memory),
            *(("GET", path, _fixed_response(path, body), type(body)) for path, body in FIXED_RESPONSES.items()),
        ]
        for method, path, endpoint, reply in routes:
            schema = {"model": reply} if reply else {"content": {"application/json": {"schema": {"type": "null"}}}}
            responses: dict[int | str, dict[str, Any]] = {200: schema, 400: {"model": replies.A1111Error}}
            self.router.api_route(path, methods=[method], response_model=None, responses=responses)(endpoint)

    async def txt2img(self, params: TextToImage, http_request: Request) -> Response:
        """Generate images from a prompt; `info` is a JSON string."""
        await self._store_guidance(params)
        request = params.to_request(self._model_key(params, http_request))
        if params.enable_hr:
            params.to_hires_request(request)  # reports what it cannot do before the first pass
        return await self._submit(request, params, http_request)

    async def img2img(self, params: ImageToImage, http_request: Request) -> Response:
        """Redraw an image; with a mask only where that is white, or painted on a clear layer."""
        if len(params.init_images or ()) != 1:
            raise InvalidInput("init_images", len(params.init_images or ()), "a list with one image in base64")
        assert params.init_images  # noqa: S101 - it has one element
        fields = {"task": "image_to_image", **params.image_fields()}
        if params.mask:
            invert = bool(params.inpainting_mask_invert)
            mask = await run_sync(decode_base64, params.mask, "mask")
            fields["task"] = "inpaint"
            fields["mask_image"] = await upload_mask(self._studio, mask, "mask", invert=invert)
        elif any((params.model_extra or {}).get("outpaint") or ()):
            fields["task"] = "inpaint"
        image = await upload_base64(self._studio, params.init_images[0], "init_images")
        await self._store_guidance(params, image)
        request = params.to_request(self._model_key(params, http_request), **fields, image=image)
        return await self._submit(request, params, http_request)

    async def extra_single_image(self, params: SingleImage, http_request: Request) -> Response:
        """Upscale an image by 2 or 4."""
        [content] = await self._upscale(params, [params.image], http_request)
        return JSONResponse({"html_info": params.notes(), "image": content})

    async def extra_batch_images(self, params: ImageBatch, http_request: Request) -> Response:
        """Upscale several images by 2 or 4."""
        contents = await self._upscale(params, [image.data for image in params.imageList], http_request)
        return JSONResponse({"html_info": params.notes(), "images": contents})

    async def _upscale(self, params: Upscale, images: list[str], http_request: Request) -> list[str]:
        names = [await upload_base64(self._studio, image, "image") for image in images]
        requests = [params.to_request(self._studio.settings.model, name) for name in names]
        owner = require_owner(http_request)
        contents = []
        for request in requests:
            job = await run_database(self._studio.submit, request, owner, "sdapi")
            [image] = await wait_for_job(job, http_request)
            contents.append(await run_sync(read_as_base64, self._studio, image))
        return contents

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
        names = (*UPSCALERS, *(REALESRGAN if upscale.is_ncnn_available() else ()))
        return JSONResponse([{"name": name, **fixed} for name in names])

    def realesrgan_models(self) -> Response:
        """List the super-resolution networks, where they are installed."""
        names = REALESRGAN if upscale.is_ncnn_available() else ()
        return JSONResponse([{"name": name, "path": None, "scale": 4} for name in names])

    def unload_checkpoint(self, http_request: Request) -> Response:
        """Unload the selected model from memory; it is loaded again when it is used."""
        owner = require_owner(http_request)
        if self._studio.settings.is_public and owner != self._studio.settings.admin:
            raise ContentBlocked("Visitors of this server cannot unload models.")
        self._studio.unload_model(self._selected_model(owner))
        return JSONResponse({})

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

    async def _store_guidance(self, params: TextToImage, image: str | None = None) -> None:
        """Put the units of ControlNet, with their images stored, into the fields of ours.

        `image` is the name of the image that is redrawn, which units without an image use.
        """
        extra = params.model_extra if params.model_extra is not None else {}
        found: dict[str, list[Any]] = {name: list(extra.get(name) or ()) for name in GUIDANCE_FIELDS}
        for unit in read_units(params.alwayson_scripts, self._studio.settings):
            found[GUIDANCE_FIELDS[unit.is_reference]].append(unit.fields(image))
            params.unit_notes.extend(unit.notes())
        for name, items in found.items():
            if items:
                extra[name] = await upload_guidance(self._studio, items, name)

    async def _submit(self, request: GenerationRequest, params: TextToImage, http_request: Request) -> Response:
        job = await run_database(self._studio.submit, request, require_owner(http_request), "sdapi")
        try:
            images = await wait_for_job(job, http_request)
            if params.enable_hr:
                images = await self._add_detail(images, params, http_request)
        except GenerationCancelled:  # clients expect the images that are finished by then
            images = job.images
        return await run_sync(self._images_response, job, images, params)

    async def _add_detail(
        self, images: list[GeneratedImage], params: TextToImage, http_request: Request
    ) -> list[GeneratedImage]:
        """The second pass of `enable_hr`."""
        detailed = []
        for image in images:
            request = image.request
            fields: dict[str, Any] = {"image": image.filename, "prompt": escape(request.prompt)}
            fields |= {"negative_prompt": escape(request.negative_prompt), **params.to_hires_request(request)}
            owner = require_owner(http_request)
            job = await run_database(self._studio.submit, replace(request, **fields), owner, "sdapi")
            detailed += await wait_for_job(job, http_request)
        return detailed

    def _images_response(self, job: Job, images: list[GeneratedImage], params: TextToImage) -> Response:
        sent = images if params.send_images else []
        return JSONResponse(
            {
                "images": [read_as_base64(self._studio, image) for image in sent],
                "parameters": params.model_dump(exclude={"init_images", "mask"}),
                "info": json.dumps(_info(job, images, params)),
            }
        )


def _not_implemented(path: str, message: str) -> Callable[[], Response]:
    def endpoint() -> Response:
        raise NotImplementedHere(message)

    endpoint.__name__, endpoint.__doc__ = path.strip("/"), f"Not available here: {message}"
    return endpoint


def _fixed_response(path: str, body: Any) -> Callable[[], Response]:
    def endpoint() -> Response:
        return JSONResponse(body)

    # What /docs shows
    endpoint.__name__, endpoint.__doc__ = path.strip("/").replace("-", "_"), "For clients that call it; does nothing."
    return endpoint


def _info(job: Job, images: list[GeneratedImage], params: TextToImage) -> dict[str, Any]:
    """A1111's `info`; `extra_generation_params` has the notes of the record and about the body."""
    request = images[0].request if images else job.request
    assert request is not None  # noqa: S101 - generate jobs have one
    notes = list(dict.fromkeys([*params.notes(), *(note for image in images for note in image.notes)]))
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
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": request.model_key,
        "sd_model_hash": (images[0].model_revision if images else "")[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.strength,
        "extra_generation_params": {"Notes": " ".join(notes)} if notes else {},
        "index_of_first_image": 0,
        "infotexts": [write_infotext(image) for image in images],
        "styles": [] if request.style == "none" else [request.style],
        "job_timestamp": _timestamp(job),
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": OWN_VERSION,
    }


def _subseed(request: GenerationRequest) -> int:
    return -1 if request.variation_seed is None else request.variation_seed


def _timestamp(job: Job) -> str:
    return f"{job.created_at:%Y%m%d%H%M%S}"
