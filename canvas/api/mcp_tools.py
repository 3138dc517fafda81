"""What agents see of our tools: parameters with enums, results with schemas, images with their addresses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import unquote, urlsplit

from canvas.catalog import Catalog
from canvas.guidance import (
    CONTROL_KINDS,
    CONTROL_RESIZE_MODES,
    MAX_CONTROL_IMAGES,
    MAX_REFERENCE_IMAGES,
    MAX_WEIGHT,
    REFERENCE_KINDS,
)
from canvas.image_formats import IMAGE_FORMATS, encode_base64
from canvas.presets import PRESETS
from canvas.request import BACKENDS, RESIZE_MODES, SCALES, UPSCALERS, GeneratedImage, GenerationRequest
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

IMAGE_ADDRESSES = ("/pictures/", "/thumbnails/", "/downloads/")
RESOURCE_PREFIX = "canvas://pictures/"
JSON_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}
LORAS: dict[str, Any] = {"type": "array", "items": {"type": "array", "minItems": 2, "maxItems": 2}}
OUTPAINT: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 4, "maxItems": 4}
FILE: dict[str, Any] = {"type": "string"}
FRACTION: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": 1}
WEIGHT: dict[str, Any] = {"type": "number", "minimum": 0, "maximum": MAX_WEIGHT}
GUIDING_FILE: dict[str, Any] = {**FILE, "description": "A URL, a data URL, or the address or id of one of your images."}


def _list_of(number: int, **properties: dict[str, Any]) -> dict[str, Any]:
    item = {"type": "object", "properties": {"image": GUIDING_FILE, **properties}, "required": ["image"]}
    return {"type": "array", "maxItems": number, "items": {**item, "additionalProperties": False}}


KNOWN_SCHEMAS: dict[str, dict[str, Any]] = {
    "loras": LORAS,
    "outpaint": OUTPAINT,
    "image": FILE,
    "mask_image": FILE,
    "control_images": _list_of(
        MAX_CONTROL_IMAGES,
        kind={"enum": list(CONTROL_KINDS)},
        weight=WEIGHT,
        start=FRACTION,
        end=FRACTION,
        detect={"type": "boolean"},
        resize_mode={"enum": list(CONTROL_RESIZE_MODES)},
        model={"type": "string"},
    ),
    "reference_images": _list_of(
        MAX_REFERENCE_IMAGES, weight=WEIGHT, kind={"enum": list(REFERENCE_KINDS)}, model={"type": "string"}
    ),
}
IMAGE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "id": {"type": "integer", "description": "The image_id of later calls."},
        "url": {"type": "string", "description": "The file; also accepted as image."},
        "prompt": {"type": "string"},
        "seed": {"type": "integer"},
        "width": {"type": "integer"},
        "height": {"type": "integer"},
        "notes": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["id", "url"],
}
OBJECTS: dict[str, Any] = {"type": "array", "items": {"type": "object"}}
# The key under which each tool's result is; structured content is always an object.
RESULT_KEYS = {
    **dict.fromkeys(("generate", "edit", "upscale", "image", "history"), "images"),
    "models": "models",
    "status": "jobs",
    "cancel": "job",
    "download_model": "job",
}
ImageUrl = Callable[[str], str]  # of the image with that file name


@cache
def _field_types() -> dict[str, Any]:
    return get_type_hints(GenerationRequest)


def input_property(name: str, described: Mapping[str, Any], models: Catalog) -> dict[str, Any]:
    """The schema of a parameter; `described` is Gradio's."""
    enums: dict[str, list[Any]] = {
        "model_key": list(models),
        "style": list(STYLES),
        "scheduler": list(SCHEDULERS),
        "upscaler": list(UPSCALERS),
        "preset": list(PRESETS),
        "backend": list(BACKENDS),
        "image_format": list(IMAGE_FORMATS),
        "resize_mode": list(RESIZE_MODES),
        "scale": list(SCALES),
    }
    known = dict(KNOWN_SCHEMAS.get(name, {}))
    if not known and name in _field_types():
        hint = _field_types()[name]
        kind = next((kind for kind in JSON_TYPES if kind is hint or kind in getattr(hint, "__args__", ())), str)
        known = {"type": JSON_TYPES[kind]}
    elif name in ("image_id", "limit", "offset"):
        known = {"type": "integer"}
    elif name in ("where", "job_id"):
        known = {"type": "string"}
    result = {**known, "description": described.get("description", "")}
    if described.get("default") is not None:
        result["default"] = described["default"]
    return result | ({"enum": enums[name]} if name in enums else {})


def output_schema(tool: str) -> dict[str, Any] | None:
    """The schema of a tool's structured content."""
    key = RESULT_KEYS.get(tool)
    if key is None:
        return None
    images = {"type": "array", "items": IMAGE_SCHEMA}
    kinds: dict[str, Any] = {"images": images, "models": OBJECTS, "jobs": OBJECTS, "job": {"type": "object"}}
    return {"type": "object", "properties": {key: kinds[key]}, "required": [key]}


def structured_result(tool: str, outputs: list[Any], image_url: ImageUrl) -> dict[str, Any]:
    """The structured content of a tool's outputs."""
    if RESULT_KEYS[tool] != "images":
        return {RESULT_KEYS[tool]: outputs[0]}
    images = outputs[-1] if tool == "history" else outputs[-1]["images"]
    return {"images": [{"url": image_url(image["filename"]), **image} for image in images]}


def result_content(result: Mapping[str, Any], files: list[Mapping[str, Any]], types: Any) -> list[Any]:
    """All images with their addresses, and the structured content as JSON for agents that read only text."""
    content: list[Any] = []
    for image, file in zip(result.get("images", ()), files, strict=False):
        data = encode_base64(Path(file["path"]).read_bytes())
        content.append(types.ImageContent(type="image", data=data, mimeType=file["mime_type"]))
        content.append(types.TextContent(type="text", text=f"Image URL: {image['url']}"))
    return [*content, types.TextContent(type="text", text=json.dumps(result, ensure_ascii=False))]


def image_reference(text: str) -> tuple[str, str] | None:
    """The file name or the id of one of our images in an address: ("filename", NAME), ("id", NUMBER)."""
    if text.startswith(RESOURCE_PREFIX):
        return "id", text.removeprefix(RESOURCE_PREFIX)
    if text.isascii() and text.isdecimal() and len(text) < 16:
        return "id", text
    try:
        path = unquote(urlsplit(text).path)
    except ValueError:
        return None
    is_own = text.startswith(("http://", "https://", "/")) and any(prefix in path for prefix in IMAGE_ADDRESSES)
    if is_own or "/gradio_api/file=" in path:
        return "filename", path.rpartition("/")[2]
    return None


def resource_of(image: GeneratedImage, types: Any) -> Any:
    """An image in the list of resources."""
    return types.Resource(
        uri=f"{RESOURCE_PREFIX}{image.id}",
        name=image.request.prompt[:80] or image.filename,
        description=f"{image.request.width}x{image.request.height}, seed {image.request.seed}",
        mimeType=IMAGE_FORMATS[image.request.image_format].mime_type,
        size=image.file_size,
    )
