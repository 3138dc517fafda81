"""Which fields of a request act on a loaded pipeline, and the notes for those that do not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage
from canvas.models.capabilities import Capabilities, read_capabilities
from canvas.models.families import BY_CLASS
from canvas.request import GenerationRequest

ATTRIBUTE = "_capabilities"


def capabilities_of(pipeline: Any, name: str = "") -> Capabilities:
    """What a loaded pipeline can do; `name` is that of the model. Raises ModelUnsupported."""
    known: Capabilities | None = vars(pipeline).get(ATTRIBUTE)
    if known is not None:
        return known
    classes = [each.__name__ for each in type(pipeline).__mro__]
    class_name = next((each for each in classes if each in BY_CLASS), classes[0])
    components = {key: part for key, part in pipeline.components.items() if part is not None}
    configs = {
        key: dict(part.config) for key, part in components.items() if isinstance(getattr(part, "config", None), dict)
    }
    index = {**dict(pipeline.config), "_class_name": class_name}
    index |= {key: (type(part).__module__, type(part).__name__) for key, part in components.items()}
    read = read_capabilities(index, configs, name)
    vars(pipeline)[ATTRIBUTE] = read
    return read


def applied_request(
    request: GenerationRequest, capabilities: Capabilities, spec: ModelSpec
) -> tuple[GenerationRequest, tuple[str, ...]]:
    """The request with the values that act, and a note for each that was chosen and does not."""
    notes = []
    if request.negative_prompt and not capabilities.negative_prompt:
        notes.append("The negative prompt has no effect on this model.")
        request = replace(request, negative_prompt="")
    elif request.negative_prompt and capabilities.family.guidance == "cfg" and (request.guidance_scale or 0) <= 1:
        notes.append("The negative prompt has no effect at a guidance of at most 1.")
    if not capabilities.guidance and request.guidance_scale != capabilities.guidance_scale:
        if request.guidance_scale != spec.guidance_scale:
            notes.append("The guidance scale has no effect on this model.")
        request = replace(request, guidance_scale=capabilities.guidance_scale)
    if request.scheduler not in capabilities.schedulers:
        if request.scheduler != spec.scheduler:
            notes.append(f"The model uses its own scheduler instead of {request.scheduler}.")
        request = replace(request, scheduler=capabilities.schedulers[0])
    if request.variation_seed is not None and not capabilities.variation_seed:
        notes.append("The variation seed has no effect on this model.")
        request = replace(request, variation_seed=None, variation_strength=0.0)
    if request.task == "image_to_image" and not capabilities.strength and request.strength not in (None, 1.0):
        notes.append("The strength has no effect on this model, which uses the image as a reference.")
        request = replace(request, strength=1.0)
    return request, tuple(notes)


def check_task(task: str, capabilities: Capabilities, spec: ModelSpec) -> None:
    """Raise InvalidInput if the model has no pipeline for the task."""
    if task in capabilities.pipelines:
        return
    names = [LazyMessage(name.replace("_", " ")) for name in capabilities.pipelines]
    message = LazyMessage("The model {model} supports text to image only.", model=spec.key)
    if len(names) > 1:
        text = "The model {model} does not support inpainting, only text to image and image to image."
        message = LazyMessage(text, model=spec.key)
    raise InvalidInput("task", task, message=message)
