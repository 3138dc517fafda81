"""Reference images: IP-Adapters on a UNet, or images that the model itself takes as references."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from canvas.engine import loader, system_info
from canvas.engine.image_io import flatten_alpha
from canvas.engine.quantization import FROM_PRETRAINED_LOCK
from canvas.errors import InvalidInput, LazyMessage, ModelCorrupted
from canvas.guidance import ReferenceImage
from canvas.models import ip_adapters
from canvas.models.capabilities import capabilities_of

log = logging.getLogger(__name__)
XL_CHANNELS = (320, 640, 1280)


@dataclass(frozen=True)
class ReferenceInput:
    """A resolved reference image with its pixels, the file of its adapter and the folder of the encoder."""

    item: ReferenceImage
    image: Image.Image
    file: Path | None = None
    encoder: Path | None = None


@dataclass(frozen=True)
class References:
    """What a pipeline gets: arguments for IP-Adapters, or `images` for models that take them themselves."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Image.Image, ...] = ()
    notes: tuple[str, ...] = ()

    def add_to(self, arguments: dict[str, Any], *, has_mask: bool) -> dict[str, Any]:
        """The arguments of the pipeline with the references."""
        if not self.images:
            return {**arguments, **self.arguments}
        if has_mask:
            return {**arguments, "image_reference": self.images[0]}
        edited = [arguments["image"]] if "image" in arguments else []
        return {**arguments, "image": [*edited, *self.images]}


NO_REFERENCES = References()


def reference_bytes(inputs: Sequence[ReferenceInput], pipeline: Any) -> int:
    """The memory that the image encoder and the adapters take; 0 without adapters."""
    adapters = [each.file for each in inputs if each.file is not None]
    encoders = {file for each in inputs if each.encoder is not None for file in each.encoder.glob("*.safetensors")}
    dtype = getattr(getattr(pipeline, "unet", None), "dtype", None)
    return loader.estimate_bytes([*adapters, *encoders], dtype.itemsize) if adapters and dtype else 0


@contextmanager
def applied_references(
    pipeline: Any, inputs: Sequence[ReferenceInput], *, guided: bool, has_mask: bool
) -> Iterator[References]:
    """Apply the reference images inside the block; raises InvalidInput or ModelCorrupted.

    `guided`: with classifier-free guidance. The image encoder is in memory only until it has encoded.
    """
    if not inputs:
        yield NO_REFERENCES
        return
    images = tuple(flatten_alpha(each.image) for each in inputs)
    if capabilities_of(pipeline).family.key in ip_adapters.NATIVE:
        if name := next((each.item.model for each in inputs if each.item.model), ""):
            text = "This model takes reference images itself, without the IP-Adapter {name}. Leave the name out."
            raise InvalidInput("reference_images", name, message=LazyMessage(text, name=name))
        yield References(images=images, notes=_native_notes(inputs, has_mask=has_mask))
        return
    unet = getattr(pipeline, "unet", None)
    if unet is None or not hasattr(pipeline, "load_ip_adapter") or any(each.file is None for each in inputs):
        message = LazyMessage("This model takes no reference images. Choose another model, or remove them.")
        raise InvalidInput("reference_images", len(inputs), message=message)
    processors = dict(unet.attn_processors)
    extractor = pipeline.feature_extractor
    try:
        embeddings = _load(pipeline, inputs, images, guided=guided)
        yield References({"ip_adapter_image_embeds": embeddings})
    finally:
        pipeline.unload_ip_adapter()
        unet.set_attn_processor(processors)
        pipeline.register_modules(image_encoder=None, feature_extractor=extractor)


def _native_notes(inputs: Sequence[ReferenceInput], *, has_mask: bool) -> tuple[str, ...]:
    default = ReferenceImage("")
    notes = []
    if any((each.item.weight, each.item.kind) != (default.weight, default.kind) for each in inputs):
        notes.append("Weight and kind of reference images have no effect on this model.")
    if has_mask and len(inputs) > 1:
        notes.append("With a mask this model uses the first reference image only.")
    return tuple(notes)


def _load(pipeline: Any, inputs: Sequence[ReferenceInput], images: Sequence[Image.Image], *, guided: bool) -> list[Any]:
    """Load an adapter for each image, and return the embeddings of the images."""
    import torch
    from safetensors import SafetensorError
    from transformers import CLIPVisionModelWithProjection

    files = [each.file for each in inputs if each.file is not None]
    name = inputs[0].item.model
    try:
        with FROM_PRETRAINED_LOCK:
            encoder = CLIPVisionModelWithProjection.from_pretrained(
                str(inputs[0].encoder), dtype=pipeline.unet.dtype, local_files_only=True
            )
        pipeline.register_modules(image_encoder=encoder.to(pipeline.unet.device))
        pipeline.load_ip_adapter(
            [str(file.parent) for file in files],
            subfolder="",
            weight_name=[file.name for file in files],
            image_encoder_folder=None,
            local_files_only=True,
        )
        pipeline.set_ip_adapter_scale([_scale(each.item, pipeline.unet) for each in inputs])
        with torch.no_grad():
            found = pipeline.prepare_ip_adapter_image_embeds(
                [[image] for image in images], None, pipeline.unet.device, 1, guided
            )
    except SafetensorError as error:
        text = "The IP-Adapter {name} cannot be loaded. Remove its files and download them again."
        raise ModelCorrupted(LazyMessage(text, name=name)) from error
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, AttributeError) as error:
        if system_info.is_out_of_memory(error):
            raise
        log.warning("%s cannot be used: %s", name, error)
        text = "The IP-Adapter {name} does not fit this model. Choose another one, or another model."
        raise InvalidInput("reference_images", name, message=LazyMessage(text, name=name)) from error
    pipeline.register_modules(image_encoder=None)
    del encoder
    system_info.release_memory()
    embeddings: list[Any] = [tensor.to(pipeline.unet.dtype) for tensor in found]
    return embeddings


def _scale(item: ReferenceImage, unet: Any) -> Any:
    """The weight of all attention layers; for a style, in SDXL, of those that hold it.

    These are the layers of InstantStyle (arXiv 2404.02733).
    """
    if item.kind != "style" or tuple(unet.config.block_out_channels) != XL_CHANNELS:
        return item.weight
    return {"up": {"block_0": [0.0, item.weight, 0.0]}}
