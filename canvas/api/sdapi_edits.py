"""The `/sdapi/v1` family: pictures from pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from PIL import ImageOps
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from canvas.api.access import owner_of
from canvas.api.pictures_in import hand_in, read_base64, submit
from canvas.api.sdapi import Sdapi, TextToImage
from canvas.api.watching import finish
from canvas.errors import InvalidInput
from canvas.request import GenerationRequest
from canvas.tasks import FITS, UPSCALERS

if TYPE_CHECKING:
    from canvas.studio import Studio

RESIZE_MODES = {0: "stretch", 1: "crop", 2: "pad"}


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


class SdapiEdits:
    """The routes of the family that start from a picture."""

    def __init__(self, studio: Studio, sdapi: Sdapi) -> None:
        self._studio = studio
        self._sdapi = sdapi

    def add_to(self, router: APIRouter) -> None:
        """Put the routes on the family's router."""
        router.post("/img2img", response_model=None)(self.image_to_image)
        router.post("/extra-single-image", response_model=None)(self.enlarge)
        router.get("/upscalers", response_model=None)(self.upscalers)

    async def image_to_image(self, wish: ImageToImage, request: Request) -> Response:
        """Redraw a picture, or with a mask the part of it that is white there."""
        owner = owner_of(request)
        if not wish.init_images:
            raise InvalidInput("init_images", wish.init_images, "a list with a picture in base64")
        image = read_base64(wish.init_images[0], "init_images")
        wanted = replace(
            wish.request(self._sdapi.model_of(wish, owner)),
            task="inpaint" if wish.mask else "image_to_image",
            image=await hand_in(self._studio, image, "init_images"),
            mask_image=await self._mask(wish),
            strength=wish.denoising_strength,
            only_masked=bool(wish.inpaint_full_res),
            fit=RESIZE_MODES.get(wish.resize_mode or 0, FITS[0]),
        )
        if wish.mask_blur is not None:
            wanted = replace(wanted, mask_feather=wish.mask_blur)
        job = await submit(self._studio, wanted, owner, "sdapi")
        return await self._sdapi.answer(job, wish, request)

    async def _mask(self, wish: ImageToImage) -> str | None:
        if not wish.mask:
            return None
        name = await hand_in(self._studio, read_base64(wish.mask, "mask"), "mask")
        if not wish.inpainting_mask_invert:
            return name
        mask = self._studio.shelf.picture(name, None).convert("L")
        return await hand_in(self._studio, ImageOps.invert(mask), "mask")

    async def enlarge(self, wish: SingleImage, request: Request) -> Response:
        """A picture two or four times as large."""
        owner = owner_of(request)
        names = {name.lower(): name for name in UPSCALERS}
        upscaler = names.get((wish.upscaler_1 or "").lower(), UPSCALERS[0])
        image = await hand_in(self._studio, read_base64(wish.image, "image"), "image")
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
        [enlarged] = await finish(job, request)
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
