"""ControlNets and IP-Adapters with random weights for the tiny pipelines, in their true layouts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from canvas import Studio
from canvas.catalog import ASSETS, parse_model
from canvas.models import ip_adapters
from canvas.models.hub_client import Hub
from canvas.request import GeneratedImage
from tests.tiny_families import make_tiny

ENCODER_WIDTH = 16  # of the embedding of an image
FAMILIES = ("sd15", "sdxl", "flux-dev", "flux2-klein")
CONTROL = {"kind": "canny", "weight": 0.8, "start": 0.0, "end": 0.75}
REFERENCE = {"weight": 0.7, "kind": "subject"}


class GuidedModel(NamedTuple):
    """A model of a studio, and all but the image of what guides it, if it takes such images."""

    key: str
    control: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None

    def guides(self, image: object) -> dict[str, list[dict[str, Any]]]:
        """`control_images` and `reference_images` with that image."""
        fields = {"control_images": self.control, "reference_images": self.reference}
        return {name: [{"image": image, **item}] for name, item in fields.items() if item is not None}


@contextmanager
def guided_models(studio: Studio, hub: Hub) -> Iterator[dict[str, GuidedModel]]:
    """The tiny models of FAMILIES in a studio whose Hub is `hub`, by family, with what guides each.

    FLUX.1 takes control images only, FLUX.2-klein takes reference images without an adapter.
    """
    settings = studio.settings
    make_tiny_encoder(hub.repo_folder(ip_adapters.REPO_ID) / "snapshots" / "tiny" / ip_adapters.ENCODER_FOLDER)
    models = {family: _add_guided_model(studio, family) for family in FAMILIES}
    yield models
    for model in models.values():
        del studio.models[model.key]
        shutil.rmtree(settings.controlnets_dir / model.key, ignore_errors=True)
        (settings.ip_adapters_dir / f"{model.key}.safetensors").unlink(missing_ok=True)
    shutil.rmtree(hub.repo_folder(ip_adapters.REPO_ID))


@contextmanager
def starter_controlnet(studio: Studio) -> Iterator[str]:
    """The name of a ControlNet for the built-in model in a studio."""
    studio.warm_up(wait=True)  # imports diffusers in another thread
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(ASSETS / "starter" / "unet")
    folder = studio.settings.controlnets_dir / "mine"
    make_tiny_controlnet(SimpleNamespace(unet=unet, vae_scale_factor=16), folder)
    yield folder.name
    shutil.rmtree(folder)


def pixels_of(studio: Studio, generated: GeneratedImage) -> bytes:
    """The pixels of a stored image."""
    with Image.open(studio.image_path(generated.filename)) as image:
        return image.tobytes()


def _add_guided_model(studio: Studio, family: str) -> GuidedModel:
    from diffusers import DiffusionPipeline

    key, settings = f"tiny-{family}", studio.settings
    folder = make_tiny(family, settings.data_dir / "tiny" / family)
    studio.models[key] = parse_model(key, {"name": str(folder), "resolution": 64, "num_inference_steps": 4})
    pipeline = DiffusionPipeline.from_pretrained(folder)
    if family == "flux2-klein":
        return GuidedModel(key, reference={**REFERENCE, "model": ""})
    control = {**CONTROL, "model": key}
    if family == "flux-dev":
        make_tiny_flux_controlnet(pipeline, settings.controlnets_dir / key)
        return GuidedModel(key, control)
    make_tiny_controlnet(pipeline, settings.controlnets_dir / key)
    adapter = make_tiny_adapter(pipeline.unet, settings.ip_adapters_dir / f"{key}.safetensors")
    return GuidedModel(key, control, {**REFERENCE, "model": adapter.name})


def make_tiny_controlnet(pipeline: Any, folder: Path, seed: int = 0) -> Path:
    """Save a ControlNet for the UNet of a pipeline, as the repositories of diffusers have it."""
    import torch
    from diffusers import ControlNetModel

    torch.manual_seed(seed)
    halvings = pipeline.vae_scale_factor.bit_length() - 1  # from pixels to latents
    net = ControlNetModel.from_unet(
        pipeline.unet, conditioning_embedding_out_channels=(4,) * (halvings + 1), load_weights_from_unet=True
    )
    _randomize(net)
    net.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tiny_flux_controlnet(pipeline: Any, folder: Path) -> Path:
    """The same for FLUX.1."""
    import torch
    from diffusers import FluxControlNetModel

    torch.manual_seed(0)
    net = FluxControlNetModel.from_transformer(
        pipeline.transformer,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=pipeline.transformer.config.attention_head_dim,
        num_attention_heads=pipeline.transformer.config.num_attention_heads,
    )
    _randomize(net)
    net.save_pretrained(folder, safe_serialization=True)
    return folder


def _randomize(net: Any) -> None:
    """Give the layers that a new ControlNet starts with at zero other weights."""
    import torch

    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "controlnet_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)


def make_photo(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """A coloured image with shapes, which no detector takes for a control image."""
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    draw = ImageDraw.Draw(image)
    draw.ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), fill="#cc5511")
    draw.rectangle((0, size[1] * 3 // 4, size[0], size[1]), fill="#203050")
    return image


def make_drawing(size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Black lines on white."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    draw.line((4, 8, size[0] - 6, size[1] - 12), fill="black", width=3)
    draw.ellipse((size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4), outline="black", width=3)
    return image


def make_tiny_encoder(folder: Path) -> Path:
    """Save an image encoder as `models/image_encoder` of h94/IP-Adapter."""
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        projection_dim=ENCODER_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def make_tiny_adapter(unet: Any, path: Path) -> Path:
    """Save an IP-Adapter for a UNet in the layout of `ip-adapter_sd15.safetensors`."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    width, tokens = unet.config.cross_attention_dim, 4
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * width, ENCODER_WIDTH),
        "image_proj.proj.bias": torch.randn(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    layers = [name for name in unet.attn_processors if not name.endswith("attn1.processor")]
    for number, name in enumerate(layers):
        module = unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = torch.randn(module.to_q.out_features, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
