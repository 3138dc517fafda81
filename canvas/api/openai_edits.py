"""The images family of the OpenAI API: `/v1/images/edits` and `/v1/images/variations`."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.responses import Response

from canvas.api.access import owner_of
from canvas.api.family import invalid_body
from canvas.api.openai import ImageWish, OpenAI
from canvas.api.pictures_in import ALLOWED, hand_in, mask_of_holes, submit
from canvas.errors import InvalidInput, StorageError
from canvas.history.infotext import read_infotext
from canvas.history.metadata import read_text

if TYPE_CHECKING:
    from canvas.studio import Studio

ANYTHING = "the same scene"  # what a variation shows where the file does not say
FILE = {"type": "string", "format": "binary"}


class EditWish(ImageWish):
    """Beside the family's fields, how much is redrawn (0.01 to 1)."""

    strength: float | None = None


def _described(*files: str) -> dict[str, Any]:
    schema = EditWish.model_json_schema()
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
        add(self.vary)

    async def edit(self, request: Request) -> Response:
        """Redraw a picture after a prompt; with a mask, only where that is transparent."""
        owner = owner_of(request)
        async with request.form() as form:
            wish = _wish(form)
            image = await _file(form, "image")
            mask = await _file(form, "mask") if "mask" in form else None
        return await self._answer(wish, image, mask, owner, request)

    async def vary(self, request: Request) -> Response:
        """Other pictures like this one; the prompt is that in the file, if there is one."""
        owner = owner_of(request)
        async with request.form() as form:
            image = await _file(form, "image")
            wish = _wish(form, _prompt_in(image))
        return await self._answer(wish, image, None, owner, request)

    async def _answer(
        self, wish: EditWish, image: bytes, mask: bytes | None, owner: str, request: Request
    ) -> Response:
        holes = mask_of_holes(mask) if mask is not None else None
        wanted = replace(
            wish.request(self._studio.settings.model),
            task="inpaint" if holes else "image_to_image",
            image=await hand_in(self._studio, image, "image"),
            mask_image=await hand_in(self._studio, holes, "mask") if holes else None,
            strength=wish.strength,
        )
        job = await submit(self._studio, wanted, owner, "openai")
        return await self._openai.answer(job, wish, request)


def _wish(form: FormData, prompt: str = "") -> EditWish:
    values = {name: value for name, value in form.items() if isinstance(value, str) and value}
    try:
        return EditWish.model_validate({"prompt": prompt, **values})
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
    return str(read_infotext(infotext).values.get("prompt", ANYTHING)) if infotext else ANYTHING
