"""The options of the commands that make images: one for each field of a request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, TypeVar

import typer

from canvas.cli.console import AsJson, DataDir, number_option
from canvas.errors import InvalidInput
from canvas.guidance import CONTROL_KINDS, ControlImage, ReferenceImage
from canvas.image_formats import IMAGE_FORMATS
from canvas.presets import PRESETS
from canvas.request import LOCAL, RESIZE_MODES, UPSCALERS
from canvas.schedulers import SCHEDULERS
from canvas.styles import STYLES

Command = TypeVar("Command", bound=Callable[..., Any])


def _complete_model() -> list[str]:
    from canvas.catalog import MODELS

    return list(MODELS)


@dataclass(frozen=True)
class RequestOption:
    """The name of an option, its type with its help, and its default; None is that of the request."""

    name: str
    annotation: Any
    default: Any = None


def _text(name: str, help_text: str, choices: Iterable[str] = (), default: str | None = None) -> RequestOption:
    option = typer.Option(help=help_text, autocompletion=(lambda: list(choices)) if choices else None)
    return RequestOption(name, Annotated[str | None, option], default)


def _number(name: str, field: str, allowed: str, kind: Callable[[str], Any], default: Any = None) -> RequestOption:
    return RequestOption(name, Annotated[kind | None, number_option(field, allowed, kind)], default)  # type: ignore[operator]


def _flag(name: str, help_text: str) -> RequestOption:
    option = typer.Option(f"--{name.replace('_', '-')}", help=help_text)
    return RequestOption(name, Annotated[bool, option], False)


def _parse_lora(value: str) -> tuple[str, float]:
    name, separator, weight = value.rpartition(":")
    try:
        return (name, float(weight)) if separator and name else (value, 1.0)
    except ValueError:
        return value, 1.0  # the colon is part of the name


def _parse_outpaint(value: str) -> list[int]:
    try:
        return [int(part) for part in value.split(",")]
    except ValueError as error:
        raise InvalidInput("outpaint", value, "left,top,right,bottom in pixels, such as 0,0,128,0") from error


def _parse_item(value: str, field: str, names: tuple[str, ...]) -> dict[str, Any]:
    """`FILE,kind=canny,weight=0.8` as the fields of a control or reference image."""
    path, *settings = value.split(",")
    item: dict[str, Any] = {"image": path}
    for setting in settings:
        name, separator, text = setting.strip().partition("=")
        if not separator or name not in names:
            raise InvalidInput(field, value, f"FILE,name=value,… with the names {', '.join(names[1:])}")
        item[name] = _parse_value(text)
    return item


def _parse_value(text: str) -> Any:
    if text.lower() in ("true", "yes", "false", "no"):
        return text.lower() in ("true", "yes")
    try:
        return float(text)
    except ValueError:
        return text


CONTROL = typer.Option(
    "--control",
    metavar="FILE[,kind=…]",
    help=f"An image whose structure is followed, such as house.png,kind=canny,weight=0.8,start=0,end=0.5. Kinds: "
    f"{', '.join(CONTROL_KINDS)}. May be repeated.",
)
REFERENCE = typer.Option(
    "--reference",
    metavar="FILE[,weight=…]",
    help="An image whose subject, style or face is taken on, such as face.png,weight=0.6,kind=face. May be repeated.",
)
LORA = typer.Option("--lora", metavar="NAME[:WEIGHT]", help="A LoRA; may be repeated.")
OUTPAINT = typer.Option(metavar="L,T,R,B", help="Pixels to add on the left, top, right and bottom.")
MODEL = typer.Option(metavar="KEY", help="A key that `models` lists.", autocompletion=_complete_model)
OPTIONS: Mapping[str, RequestOption] = MappingProxyType(
    {
        "model_key": RequestOption("model", Annotated[str | None, MODEL]),
        "width": _number("width", "width", "a multiple of 8", int),
        "height": _number("height", "height", "a multiple of 8", int),
        "scale_to_size": _flag("scale_to_size", "Scale to a size that the model cannot draw."),
        "num_inference_steps": _number("steps", "steps", "a whole number from 1 to 150", int),
        "guidance_scale": _number("guidance", "guidance", "a number from 0 to 30", float),
        "seed": _number("seed", "seed", "a whole number, or -1 for random", int, -1),
        "style": _text("style", "A name that `styles` lists.", STYLES, "none"),
        "negative_prompt": _text("negative", "Negative prompt: what to avoid.", default=""),
        "scheduler": _text("scheduler", "A name that `schedulers` lists, such as 'Euler a'.", SCHEDULERS),
        "preset": _text("preset", "Speed: quality, balanced or turbo.", PRESETS),
        "loras": RequestOption("lora", Annotated[list[str] | None, LORA]),
        "prompt_weighting": _flag("prompt_weighting", "Read (word:1.3) in the prompt as a weight."),
        "variation_seed": _number("variation_seed", "variation_seed", "a seed to vary the image towards", int),
        "variation_strength": _number("variation_strength", "variation_strength", "a number from 0 to 1", float),
        "num_images": _number("count", "count", "a whole number from 1 to 16", int, 1),
        "strength": _number("strength", "strength", "a number from 0.01 to 1", float),
        "resize_mode": _text("resize_mode", "Fit an image of another shape: crop, pad or stretch.", RESIZE_MODES),
        "fill_color": _text("fill_color", "Behind transparent parts and beside a padded image, such as #ffffff."),
        "mask_blur": _number("mask_blur", "mask_blur", "a whole number of pixels from 0 to 256", int),
        "only_masked": _flag("only_masked", "Draw the masked area alone, at the model's full resolution."),
        "outpaint": RequestOption("outpaint", Annotated[str | None, OUTPAINT]),
        "scale": _number("scale", "scale", "2 or 4", int, 2),
        "upscaler": _text("upscaler", f"One of {', '.join(UPSCALERS)}.", UPSCALERS, "lanczos"),
        "image_format": _text("format", "png, jpeg or webp; by default that of --output.", IMAGE_FORMATS),
        "quality": _number("quality", "quality", "a whole number from 1 to 100, of JPEG and WebP", int),
        "watermark": _text("watermark", "A line of text on the image."),
        "control_images": RequestOption("control", Annotated[list[str] | None, CONTROL]),
        "reference_images": RequestOption("reference", Annotated[list[str] | None, REFERENCE]),
        "backend": _text("backend", "local, hf-inference or remote.", default=LOCAL),
    }
)
IMAGE_FIELDS = ("strength", "resize_mode", "fill_color")
TEXT_TO_IMAGE = tuple(
    name for name in OPTIONS if name not in (*IMAGE_FIELDS, "mask_blur", "only_masked", "outpaint", "scale", "upscaler")
)
EDIT = tuple(name for name in OPTIONS if name not in ("scale", "upscaler", "scale_to_size"))
UPSCALE = tuple(
    name
    for name in (*TEXT_TO_IMAGE, *IMAGE_FIELDS, "scale", "upscaler")
    if name not in ("width", "height", "scale_to_size", "num_images", "variation_seed", "variation_strength")
)
OTHERS = {
    "accept_terms": (
        Annotated[bool, typer.Option("--accept-terms", help="Accept the terms of a remote backend or a model.")],
        False,
    ),
    "output": (
        Annotated[str | None, typer.Option("--output", "-o", metavar="PATH", help="Also write here; - is stdout.")],
        None,
    ),
    "key": (
        Annotated[str | None, typer.Option(metavar="KEY", help="API key for a server that requires one.")],
        None,
    ),
    "json": (AsJson, False),
    "data_dir": (DataDir, None),
}  # fmt: skip


def with_options(*names: str) -> Callable[[Command], Command]:
    """Give a command the options of these fields and those of all such commands, in place of `**options`."""

    def add(command: Command) -> Command:
        own = [item for item in inspect.signature(command, eval_str=True).parameters.values() if item.name != "options"]
        options = {OPTIONS[name].name: (OPTIONS[name].annotation, OPTIONS[name].default) for name in names} | OTHERS
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, (annotation, default) in options.items()
        ]
        signature = inspect.Signature([*own, *added])
        command.__signature__ = signature  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in signature.parameters.values()}
        return command

    return add


def request_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a request that the options set."""
    names = {option.name: field for field, option in OPTIONS.items()}
    fields = {names[name]: value for name, value in options.items() if name in names and value is not None}
    if "loras" in fields:
        fields["loras"] = tuple(map(_parse_lora, fields["loras"]))
    if "outpaint" in fields:
        fields["outpaint"] = _parse_outpaint(fields["outpaint"])
    for field, kind in (("control_images", ControlImage), ("reference_images", ReferenceImage)):
        if field in fields:
            fields[field] = [_parse_item(value, field, kind._fields) for value in fields[field]]
    return fields
