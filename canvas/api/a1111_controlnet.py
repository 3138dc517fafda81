"""The ControlNet extension of AUTOMATIC1111's API: its units in `alwayson_scripts`, and `/controlnet/…`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from anyio.to_thread import run_sync
from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from canvas.api.base import ApiRoute, encode_preview, require_owner
from canvas.engine.image_io import decode_image
from canvas.errors import CanvasError, InvalidInput, LazyMessage
from canvas.guidance import ControlImage
from canvas.image_formats import decode_base64
from canvas.models import controlnets, ip_adapters
from canvas.settings import Settings
from canvas.studio import Studio

SCRIPT_NAMES = ("controlnet",)  # clients differ in the case
VERSION = 2
RESIZE_MODES: dict[object, str] = {
    **{0: "stretch", 1: "crop", 2: "pad"},
    **{"just resize": "stretch", "crop and resize": "crop", "resize and fill": "pad"},
    **{"scale to fit (inner fit)": "crop", "envelope (outer fit)": "pad"},
}
# Kinds by a word in the name of a module or a model; the first that is found counts.
KIND_WORDS = (
    *(("canny", "canny"), ("lineart", "lineart"), ("scribble", "scribble"), ("softedge", "soft_edge")),
    *(("soft_edge", "soft_edge"), ("hed", "soft_edge"), ("depth", "depth"), ("openpose", "pose"), ("pose", "pose")),
    *(("tile", "tile"), ("inpaint", "inpaint")),
)
REFERENCE_WORDS = ("ip-adapter", "ip_adapter", "ipadapter", "reference")
MODULES = (
    *("none", "invert (from white bg & black line)", "canny", "depth_anything_v2", "lineart_standard"),
    *("scribble_xdog", "softedge", "tile_resample", "inpaint_only", "ip-adapter"),
)
RESPONSES: dict[int | str, dict[str, Any]] = {200: {"model": dict[str, Any]}}
# What a unit may have besides; it changes nothing here. `pixel_perfect` is always so.
WITHOUT_EFFECT = frozenset(
    {
        *("low_vram", "lowvram", "processor_res", "threshold_a", "threshold_b", "pixel_perfect", "guessmode"),
        *("hr_option", "save_detected_map", "use_preview_as_input", "input_mode", "batch_images", "is_ui"),
        *("output_dir", "loopback", "inpaint_crop_input_image", "advanced_weighting", "union_control_type"),
    }
)
USUAL_VALUES: dict[str, tuple[Any, ...]] = {
    "control_mode": ("", 0, "Balanced", None),
    "mask": ("", None),
    "effective_region_mask": ("", None),
    "guidance_start": (0, None),
    "guidance_end": (1, None),
}
KNOWN = frozenset({"enabled", "image", "input_image", "module", "model", "weight", "resize_mode"}) | WITHOUT_EFFECT
STEPS = frozenset({"guidance_start", "guidance_end"})  # of control images only


class DetectRequest(BaseModel):
    """The body of `/controlnet/detect`."""

    controlnet_module: str = "none"
    controlnet_images: list[str] = []


class Unit:
    """A unit of the script, as a control or a reference image of this program."""

    def __init__(self, values: dict[str, Any], settings: Settings) -> None:
        self._values = values
        self._settings = settings
        self._module = str(values.get("module") or "none").lower()
        self._model = re.sub(r"\s*\[\w+\]$", "", str(values.get("model") or "None")).strip()

    @property
    def is_reference(self) -> bool:
        return any(word in name for word in REFERENCE_WORDS for name in (self._module, self._model.lower()))

    def fields(self, image: str | None) -> dict[str, Any]:
        """The fields of the item; `image` is the name of the image that is redrawn, if there is one."""
        source = self._values.get("image") or self._values.get("input_image") or image
        if isinstance(source, dict):
            source = source.get("image")
        if not source:
            raise InvalidInput("control_images", None, message="Each ControlNet unit needs an image.")
        if self.is_reference:
            kind = "face" if "face" in f"{self._module} {self._model.lower()}" else "subject"
            return {"image": source, "weight": self._values.get("weight", 1.0), "kind": kind, "model": self._adapter()}
        kind, model = self._kind_and_model()
        mode = self._values.get("resize_mode", "Crop and Resize")
        detects = self._module not in ("none", "") and not self._module.startswith("invert")
        return {
            "image": source,
            "kind": kind,
            "weight": self._values.get("weight", 1.0),
            "start": self._values.get("guidance_start", 0.0),
            "end": self._values.get("guidance_end", 1.0),
            "detect": detects,
            "resize_mode": RESIZE_MODES.get(mode.lower() if isinstance(mode, str) else mode, "crop"),
            "model": model,
        }

    def notes(self) -> list[str]:
        """What of the unit has no effect, by name."""
        known = KNOWN if self.is_reference else KNOWN | STEPS
        ignored = [
            name
            for name, value in self._values.items()
            if name not in known and value not in USUAL_VALUES.get(name, (None, "", 0))  # False is 0
        ]
        return [f"controlnet {name} has no effect here." for name in ignored]

    def _kind_and_model(self) -> tuple[str, str]:
        """The kind, and the ControlNet by its full name; "" for the usual one of the kind."""
        name, known = self._model, model_names(self._settings)
        kind = kind_of(self._module) or kind_of(name) or "auto"
        if name in known or controlnets.HUB_ID.fullmatch(name):
            return kind, known.get(name, name)
        if name.lower() not in ("none", "") and kind_of(name) is None:
            raise InvalidInput("control_images", name, LazyMessage("one of {names}", names=", ".join(known)))
        return kind, ""

    def _adapter(self) -> str:
        """The file of an own IP-Adapter; "" for the usual one, which any other name of an adapter stands for."""
        own = adapter_names(self._settings)
        if self._model in own:
            return own[self._model]
        if self._model.lower() != "none" and not any(word in self._model.lower() for word in REFERENCE_WORDS):
            names = ", ".join(own) or LazyMessage("none")
            raise InvalidInput("reference_images", self._model, LazyMessage("one of {names}", names=names))
        return ""


def kind_of(name: str) -> str | None:
    """The kind of control image that the name of a module or model stands for."""
    return next((kind for word, kind in KIND_WORDS if word in name.lower()), None)


def model_names(settings: Settings) -> dict[str, str]:
    """The ControlNets that clients choose from, by the name that they are listed with."""
    usual = [each.repo_id for kinds in controlnets.USUAL.values() for each in kinds.values()]
    own = {name: name for name in controlnets.list_names(settings.controlnets_dir)}
    return {repo_id.rpartition("/")[2]: repo_id for repo_id in dict.fromkeys(usual)} | own


def adapter_names(settings: Settings) -> dict[str, str]:
    """The files in the folder `ip_adapters`, by the name that they are listed with."""
    return {name.removesuffix(".safetensors"): name for name in ip_adapters.list_names(settings.ip_adapters_dir)}


def read_units(scripts: dict[str, Any] | None, settings: Settings) -> list[Unit]:
    """The enabled units in `alwayson_scripts`; raises InvalidInput."""
    units: list[Unit] = []
    for name, script in (scripts or {}).items():
        if name.lower() not in SCRIPT_NAMES:
            continue
        values = script.get("args", []) if isinstance(script, dict) else script
        if not isinstance(values, list):
            raise InvalidInput("alwayson_scripts", name, "an object with a list args")
        units += [Unit(each, settings) for each in values if isinstance(each, dict) and each.get("enabled", True)]
    return units


def other_scripts(names: Iterable[str]) -> list[str]:
    """The scripts that are not read here."""
    return [name for name in names if name.lower() not in SCRIPT_NAMES]


class A1111Route(ApiRoute):
    """Answers errors in the format of this API."""

    @staticmethod
    def error_response_for(error: CanvasError) -> Response:
        """`detail` is what most clients show."""
        return JSONResponse({"error": error.code, "detail": str(error), "errors": str(error)}, error.http_status)


class ControlNetApi:
    """The routes of the extension that its clients ask before they send units."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio
        self.router = APIRouter(prefix="/controlnet", route_class=A1111Route, tags=["sdapi"])
        get, responses = self.router.get, RESPONSES
        get("/version", response_model=None, responses=responses)(self.version)
        get("/model_list", response_model=None, responses=responses)(self.model_list)
        get("/module_list", response_model=None, responses=responses)(self.module_list)
        self.router.post("/detect", response_model=None, responses=responses)(self.detect)

    def version(self) -> Response:
        """The version of the extension's API."""
        return JSONResponse({"version": VERSION})

    def model_list(self) -> Response:
        """List the ControlNets, which are downloaded when they are used, and the own IP-Adapters."""
        settings = self._studio.settings
        return JSONResponse({"model_list": [*model_names(settings), *adapter_names(settings)]})

    def module_list(self) -> Response:
        """List the detectors."""
        return JSONResponse({"module_list": list(MODULES), "module_detail": {}})

    async def detect(self, params: DetectRequest, http_request: Request) -> Response:
        """What a ControlNet sees of images."""
        require_owner(http_request)
        kind = kind_of(params.controlnet_module) or "tile"
        item = ControlImage("", kind, detect=kind != "tile")

        def run(encoded: str) -> str:
            image = decode_image(decode_base64(encoded, "controlnet_images"), "controlnet_images").image
            return encode_preview(self._studio.control_preview(image, item)[1], "png")

        images = [await run_sync(run, encoded) for encoded in params.controlnet_images]
        return JSONResponse({"images": images, "info": "Success"})
