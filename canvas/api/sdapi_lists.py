"""The `/sdapi/v1` family: what there is to choose from, the chosen model, and reading settings."""

from __future__ import annotations

import base64
import binascii
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from canvas.api.access import owner_of
from canvas.catalog import get_model
from canvas.engine import machine
from canvas.errors import InvalidInput, StorageError
from canvas.history.infotext import read_infotext
from canvas.history.metadata import read_text
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

if TYPE_CHECKING:
    from canvas.studio import Studio

CHECKPOINT = "sd_model_checkpoint"
# Asked for by clients when they connect; there is nothing of the kind here.
EMPTY = ("sd-vae", "hypernetworks", "face-restorers", "latent-upscale-modes")


class PngInfo(BaseModel):
    """A picture in base64, with or without a `data:` prefix."""

    image: str


class Lists:
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
            "/cmd-flags": self.nothing,
            "/scripts": self.scripts,
            "/loras": self.loras,
            "/embeddings": self.embeddings,
        }
        for path, endpoint in routes.items():
            router.get(path, response_model=None)(endpoint)
        for name in EMPTY:
            router.get(f"/{name}", response_model=None)(self.empty)
        router.post("/options", response_model=None)(self.set_options)
        router.post("/refresh-checkpoints", response_model=None)(self.nothing)
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
                CHECKPOINT: self.chosen_model(owner_of(request)),
                "sd_checkpoint_hash": None,
                "samples_format": "png",
            }
        )

    def set_options(self, options: dict[str, Any], request: Request) -> Response:
        """Choose the caller's model; what else is sent is let be."""
        owner = owner_of(request)
        if options.get(CHECKPOINT):
            self._chosen[owner] = self.model_named(options[CHECKPOINT])
        return JSONResponse(None)

    def memory(self) -> Response:
        """Memory of this process and its machine, in bytes."""
        ram = {
            "free": machine.free_memory(),
            "used": machine.resident_memory(),
            "total": machine.total_memory(),
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
                for name in self._studio.shelf.loras()
            ]
        )

    def embeddings(self) -> Response:
        """None."""
        return JSONResponse({"loaded": {}, "skipped": {}})

    def empty(self) -> Response:
        """An empty list."""
        return JSONResponse([])

    def nothing(self) -> Response:
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
