"""The parameters of a wish as Gradio's API and agents see them: a line for each field."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import MISSING, fields
from functools import wraps
from typing import Any, get_type_hints

import gradio as gr

from canvas.request import GenerationRequest

# What is said of each parameter; agents read it, too. Types and defaults are the request's.
WORDS = {
    "prompt": "What the picture shows, in English, the most important things first.",
    "image": "The picture to start from.",
    "image_id": "Or the id of one of your own pictures, which history lists.",
    "mask_image": "As large as the picture; white where it is to be redrawn.",
    "strength": "0.01 to 1; little keeps the picture, 1 forgets it.",
    "negative_prompt": "What it must not show.",
    "model_key": "One of the keys that models lists; starter needs no download.",
    "width": "Pixels, a multiple of 8; left out, the model's native size, which is best.",
    "height": "Pixels, a multiple of 8; left out, the model's native size, which is best.",
    "num_inference_steps": "1 to 150; more is slower and finer.",
    "guidance_scale": "0 to 30; how strictly the prompt is followed.",
    "seed": "Picture i is made with seed + i; -1 draws one.",
    "style": "none, photorealistic, artistic, cartoon, anime, digital art, fantasy, sci-fi.",
    "num_images": "1 to 16.",
    "where": "here; or huggingface or remote, once the user has agreed to it on the page.",
    "scale": "2 or 4 times as wide and as high.",
    "upscaler": "lanczos at once; illustration, photo and detail draw more and take longer.",
}
# What comes as a file or a number where the request holds a name.
# Not `| None` in the files' hints: in a choice of types Gradio's MCP server sees no file.
PICTURES: dict[str, Any] = {
    "image": gr.FileData,
    "image_id": int | None,
    "mask_image": gr.FileData,
}

Answers = AsyncIterator[Any]
Method = Callable[[Any, dict[str, Any], gr.Request | None], Answers]


def takes(*names: str, **words: str) -> Callable[[Method], Callable[..., Answers]]:
    """Give a method that takes a dict the parameters of these names; `words` replace WORDS."""
    parameters = [_parameter(name) for name in names]

    def decorate(method: Method) -> Callable[..., Answers]:
        @wraps(method)
        async def with_parameters(self: Any, *values: Any, **named: Any) -> Answers:
            given = signature.bind(self, *values, **named)
            given.apply_defaults()
            _, *wanted, request = given.arguments.values()
            wish = dict(zip(names, wanted, strict=True))
            async with aclosing(method(self, wish, request)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    yield answer

        own = inspect.signature(method, eval_str=True).parameters
        signature = inspect.Signature([own["self"], *parameters, own["request"]])
        with_parameters.__signature__ = signature  # type: ignore[attr-defined]
        with_parameters.__annotations__ = {  # Gradio reads these beside the signature
            name: parameter.annotation
            for name, parameter in signature.parameters.items()
            if name != "self"
        }
        told = "\n".join(f"    {name}: {words.get(name, WORDS[name])}" for name in names)
        with_parameters.__doc__ = f"{inspect.getdoc(method)}\n\nArgs:\n{told}"
        return with_parameters

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    hint, default = PICTURES.get(name), None
    if hint is None:
        hint = get_type_hints(GenerationRequest)[name]
        [field] = [field for field in fields(GenerationRequest) if field.name == name]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
    return inspect.Parameter(
        name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=hint
    )
