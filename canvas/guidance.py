"""Images that guide a generation: control images (ControlNet) and reference images (IP-Adapter, FLUX.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def _check_detect(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(field, value, LazyMessage("true or false"))
    return value


def _check_model(field: str, value: object) -> str:
    name = validation.text(field, value)
    if len(name) > MAX_MODEL_NAME:
        raise InvalidInput(field, name, LazyMessage("at most {number} characters", number=MAX_MODEL_NAME))
    return name


def _number(low: float, high: float) -> Callable[[str, Any], Any]:
    return lambda field, value: validation.number(field, value, low, high)


def _one_of(choices: tuple[str, ...]) -> Callable[[str, Any], Any]:
    return lambda field, value: validation.choice(field, value, choices)


CONTROL_VALIDATORS: Mapping[str, Callable[[str, Any], Any]] = {
    "kind": _one_of(CONTROL_KINDS),
    "weight": _number(0, MAX_WEIGHT),
    "start": _number(0, 1),
    "end": _number(0, 1),
    "detect": _check_detect,
    "resize_mode": _one_of(CONTROL_RESIZE_MODES),
    "model": _check_model,
}
REFERENCE_VALIDATORS: Mapping[str, Callable[[str, Any], Any]] = {
    "weight": _number(0, MAX_WEIGHT),
    "kind": _one_of(REFERENCE_KINDS),
    "model": _check_model,
}


def _items(
    field: str,
    value: object,
    validators: Mapping[str, Callable[[str, Any], Any]],
    kind: type[Item],
    check_name: CheckName,
) -> list[Item]:
    limit = MAX_CONTROL_IMAGES if kind is ControlImage else MAX_REFERENCE_IMAGES
    names = ", ".join(kind._fields)
    allowed = f"a list of at most {limit} objects with the fields {names}"
    if not isinstance(value, list | tuple) or len(value) > limit:
        raise InvalidInput(field, value, allowed)
    items = []
    for item in value:
        given: Mapping[str, Any] = {}
        if isinstance(item, Mapping):
            given = item
        elif isinstance(item, list | tuple) and len(item) <= len(kind._fields):
            given = dict(zip(kind._fields, item, strict=False))
        if "image" not in given or not set(given) <= set(kind._fields):
            raise InvalidInput(field, item, allowed)
        checked: dict[str, Any] = {"image": check_name(field, given["image"])}
        for name, validator in validators.items():
            if given.get(name) is not None:
                checked[name] = _check(field, name, given[name], validator)
        items.append(kind(**checked))
    return items


def _check(field: str, name: str, value: object, validator: Callable[[str, Any], Any]) -> Any:
    """The valid value of one field of an item; the error names the list."""
    try:
        return validator(name, value)
    except InvalidInput as error:
        raise InvalidInput(field, value, f"a list in which {name} is {error.allowed}") from error


def as_json(items: tuple[ControlImage, ...] | tuple[ReferenceImage, ...]) -> tuple[dict[str, Any], ...]:
    """The items as JSON objects; the inverse of `check_control_images` and `check_reference_images`."""
    return tuple(item._asdict() for item in items)
