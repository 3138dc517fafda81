"""Images that guide a generation: control images (ControlNet) and reference images (IP-Adapter, FLUX.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

from canvas import validation
from canvas.errors import InvalidInput, LazyMessage

GUIDANCE_FIELDS = ("control_images", "reference_images")  # of a request
AUTO = "auto"
CONTROL_KINDS = (AUTO, "canny", "lineart", "scribble", "soft_edge", "depth", "pose", "tile", "inpaint")
REFERENCE_KINDS = ("subject", "style", "face")
CONTROL_RESIZE_MODES = ("crop", "pad", "stretch")
MAX_CONTROL_IMAGES = 4
MAX_REFERENCE_IMAGES = 3
MAX_WEIGHT = 2.0
MAX_MODEL_NAME = 200  # characters
Validator = Callable[[str, Any], Any]
CheckName = Callable[[str, object], str]  # of a gallery image or an upload
Item = TypeVar("Item", bound="ControlImage | ReferenceImage")


class ControlImage(NamedTuple):
    """An image whose structure the result follows.

    `image` is the name of a gallery image or upload. `start` and `end` are fractions of the
    denoising steps. `detect`: whether edges, depth and so on are detected in the image, or it
    shows them already; None: decided by its looks, as is the kind "auto". `model` is a folder in
    `controlnets` or a Hub id; "" for the usual ControlNet of the kind.
    """

    image: str
    kind: str = AUTO
    weight: float = 1.0
    start: float = 0.0
    end: float = 1.0
    detect: bool | None = None
    resize_mode: str = "crop"
    model: str = ""


class ReferenceImage(NamedTuple):
    """An image whose subject, style or face the result takes on; `image` as in ControlImage.

    `model` is a file in `ip_adapters` or `owner/name:file` on the Hub; "" for the usual IP-Adapter,
    or for a model that takes references itself.
    """

    image: str
    weight: float = 0.6
    kind: str = "subject"
    model: str = ""


def check_control_images(field: str, value: object, check_name: CheckName) -> tuple[ControlImage, ...]:
    """The items of a list of dicts, or of lists of their values; raises InvalidInput."""
    items = tuple(_items(field, value, CONTROL_VALIDATORS, ControlImage, check_name))
    for item in items:
        if item.end <= item.start:
            raise InvalidInput(field, item.end, "a list in which end is larger than start")
    return items


def check_reference_images(field: str, value: object, check_name: CheckName) -> tuple[ReferenceImage, ...]:
    """The same for reference images."""
    return tuple(_items(field, value, REFERENCE_VALIDATORS, ReferenceImage, check_name))


def _check_model(field: str, value: object) -> str:
    name = validation.text(field, value)
    if len(name) > MAX_MODEL_NAME:
        raise InvalidInput(field, name, LazyMessage("at most {number} characters", number=MAX_MODEL_NAME))
    return name


CONTROL_VALIDATORS: Mapping[str, Validator] = {
    "kind": partial(validation.choice, choices=CONTROL_KINDS),
    "weight": partial(validation.number, low=0, high=MAX_WEIGHT),
    "start": partial(validation.number, low=0, high=1),
    "end": partial(validation.number, low=0, high=1),
    "detect": validation.boolean,
    "resize_mode": partial(validation.choice, choices=CONTROL_RESIZE_MODES),
    "model": _check_model,
}
REFERENCE_VALIDATORS: Mapping[str, Validator] = {
    "weight": partial(validation.number, low=0, high=MAX_WEIGHT),
    "kind": partial(validation.choice, choices=REFERENCE_KINDS),
    "model": _check_model,
}


def _items(
    field: str, value: object, validators: Mapping[str, Validator], kind: type[Item], check_name: CheckName
) -> list[Item]:
    limit = MAX_CONTROL_IMAGES if kind is ControlImage else MAX_REFERENCE_IMAGES
    names = ", ".join(kind._fields)
    allowed = f"a list of at most {limit} objects with the fields {names}"
    if not isinstance(value, list | tuple) or len(value) > limit:
        raise InvalidInput(field, value, allowed)
    items = []
    for item in value:
        given: Mapping[str, Any] = item if isinstance(item, Mapping) else {}
        if isinstance(item, list | tuple) and len(item) <= len(kind._fields):
            given = dict(zip(kind._fields, item, strict=False))
        if "image" not in given or not set(given) <= set(kind._fields):
            raise InvalidInput(field, item, allowed)
        checked: dict[str, Any] = {"image": check_name(field, given["image"])}
        for name, validator in validators.items():
            if given.get(name) is not None:
                try:
                    checked[name] = validator(name, given[name])
                except InvalidInput as error:
                    raise InvalidInput(field, given[name], f"a list in which {name} is {error.allowed}") from error
        items.append(kind(**checked))
    return items


def as_json(items: tuple[ControlImage, ...] | tuple[ReferenceImage, ...]) -> tuple[dict[str, Any], ...]:
    """The items as JSON objects; the inverse of `check_control_images` and `check_reference_images`."""
    return tuple(item._asdict() for item in items)
