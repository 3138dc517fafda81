"""What can be done beside a picture from words alone: its fields of a request, and their checks."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from canvas import validation
from canvas.errors import InvalidInput

TASKS = ("text_to_image", "image_to_image", "inpaint", "upscale")
FITS = ("crop", "pad", "stretch")
UPSCALERS = ("lanczos", "illustration", "photo", "detail")
SCALES = (2, 4)
MAX_LORAS = 8
MAX_MARK = 60  # characters
MAX_EXTENSION = 2048  # pixels a side
# How much of a picture is redrawn where the request does not say.
STRENGTHS: Mapping[str, float] = MappingProxyType(
    {"image_to_image": 0.6, "inpaint": 1.0, "upscale": 0.3}
)
NEAR = 0.05  # of a strength
FILE_NAME = re.compile(r"[^\s/\\.][^/\\\x00-\x1f]{0,250}")
COLOR = re.compile(r"#[0-9a-f]{6}")


def _switch(field: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(field, value, "true or false")
    return value


def _file_name(field: str, value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not FILE_NAME.fullmatch(validation.text(field, value)):
        raise InvalidInput(field, value, "the name of a picture of the gallery or one handed in")
    return value


def _strength(field: str, value: object) -> float | None:
    return None if value is None else validation.number(field, value, 0.01, 1)


def _color(field: str, value: object) -> str:
    if not isinstance(value, str) or not COLOR.fullmatch(value.lower()):
        raise InvalidInput(field, value, "a colour such as #ffffff")
    return value.lower()


def _sides(field: str, value: object) -> tuple[int, ...]:
    if not isinstance(value, list | tuple) or len(value) != 4:
        raise InvalidInput(field, value, "four numbers of pixels: left, top, right, bottom")
    sides = [validation.whole_number(field, side, 0, MAX_EXTENSION) for side in value]
    return tuple(validation.multiple_of_8(field, side) for side in sides)


def _seed(field: str, value: object) -> int | None:
    return None if value is None else validation.whole_number(field, value, 0, 2**53 - 17)


def _scale(field: str, value: object) -> int:
    scale = validation.whole_number(field, value, min(SCALES), max(SCALES))
    if scale not in SCALES:
        raise InvalidInput(field, value, " or ".join(map(str, SCALES)))
    return scale


def _loras(field: str, value: object) -> tuple[tuple[str, float], ...]:
    allowed = f"at most {MAX_LORAS} pairs of a name and a weight from -4 to 4"
    if not isinstance(value, list | tuple) or len(value) > MAX_LORAS:
        raise InvalidInput(field, value, allowed)
    pairs = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise InvalidInput(field, pair, allowed)
        name = validation.text(field, pair[0])
        if not name or len(name) > 200:
            raise InvalidInput(field, pair, allowed)
        pairs.append((name, validation.number(field, pair[1], -4, 4)))
    return tuple(pairs)


def _mark(field: str, value: object) -> str:
    text = validation.text(field, value)
    if len(text) > MAX_MARK or "\n" in text:
        raise InvalidInput(field, value, f"one line of at most {MAX_MARK} characters")
    return text


def schedule(num_inference_steps: int, strength: float) -> tuple[int, int]:
    """The steps of the whole way from noise to picture, and how many of them, its last, are done.

    As diffusers counts, but where so few steps would begin far from what the strength says:
    then the way is made longer, and never more of it is done than was asked for.
    """
    done = int(num_inference_steps * strength)
    if done and strength - done / num_inference_steps <= NEAR:
        return num_inference_steps, done
    done = math.ceil(num_inference_steps * strength - 1e-9)
    return max(done, round(done / strength)), done


CHECKS: Mapping[str, Callable[[str, Any], Any]] = MappingProxyType(
    {
        "task": lambda field, value: validation.choice(field, value, TASKS),
        "image": _file_name,
        "mask_image": _file_name,
        "strength": _strength,
        "fit": lambda field, value: validation.choice(field, value, FITS),
        "background": _color,
        "mask_feather": lambda field, value: validation.whole_number(field, value, 0, 256),
        "only_masked": _switch,
        "extend": _sides,
        "variation_seed": _seed,
        "variation_strength": lambda field, value: validation.number(field, value, 0, 1),
        "scale": _scale,
        "upscaler": lambda field, value: validation.choice(field, value, UPSCALERS),
        "loras": _loras,
        "prompt_weighting": _switch,
        "watermark": _mark,
    }
)
