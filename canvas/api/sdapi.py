"""The `/sdapi/v1` family: making pictures, watching and stopping, for clients of A1111's API."""

from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import JSONResponse, Response

from canvas.api.access import owner_of
from canvas.api.errors import status_of
from canvas.api.family import FamilyRoute
from canvas.api.sdapi_lists import Lists
from canvas.api.watching import finish
from canvas.errors import CanvasError, GenerationCancelled, InvalidInput
from canvas.history.infotext import read_sampler, write_infotext
from canvas.jobs import Job
from canvas.request import GeneratedImage, GenerationRequest, Step
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.studio import Studio

# The size that clients send when nobody chose one: it means the model's own.
UNCHOSEN = (512, 512)


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
        width, height = (None, None) if size == UNCHOSEN else size
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


class SdapiRoute(FamilyRoute):
    """Answers failures as these clients read them."""

    @staticmethod
    def say(error: CanvasError) -> Response:
        """`detail` is what most clients show."""
        body = {"error": error.code, "detail": str(error), "errors": str(error)}
        return JSONResponse(body, status_of(error))


class Sdapi:
    """The family's routes over one studio."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self._lists = Lists(studio)
        self.router = APIRouter(prefix="/sdapi/v1", route_class=SdapiRoute, tags=["sdapi"])
        self.router.post("/txt2img", response_model=None)(self.text_to_image)
        self.router.get("/progress", response_model=None)(self.progress)
        self.router.post("/interrupt", response_model=None)(self.interrupt)
        self._lists.add_to(self.router)

    async def text_to_image(self, wish: TextToImage, request: Request) -> Response:
        """Pictures from a prompt; `info` is a text of JSON."""
        owner = owner_of(request)
        job = self._studio.submit(wish.request(self.model_of(wish, owner)), owner, "sdapi")
        return await self.answer(job, wish, request)

    def model_of(self, wish: TextToImage, owner: str) -> str:
        """The key of the model for this wish; raises UnknownModel."""
        chosen = (wish.override_settings or {}).get("sd_model_checkpoint")
        return self._lists.model_named(chosen) if chosen else self._lists.chosen_model(owner)

    async def answer(self, job: Job, wish: TextToImage, request: Request) -> Response:
        """The pictures of a job; `parameters` is the wish without the pictures in it."""
        try:
            images = await finish(job, request)
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
        jobs = [job for job in self._studio.jobs(owner_of(request)) if not job.finished]
        job = next((job for job in jobs if job.status != "queued"), None)
        step = job.progress if job and isinstance(job.progress, Step) else None
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
        for job in self._studio.jobs(owner_of(request)):
            if job.status in ("loading", "running", "downloading"):
                job.cancel()
        return JSONResponse({})

    def content(self, image: GeneratedImage) -> str:
        """The file of a picture in base64."""
        return base64.b64encode(self._studio.picture_path(image.filename).read_bytes()).decode()


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
