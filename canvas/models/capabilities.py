"""What a model can do, by its `model_index.json` and components, and which fields of a request have no effect on it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from canvas.catalog import ModelSpec
from canvas.errors import InvalidInput, LazyMessage, ModelUnsupported
from canvas.models.families import BY_CLASS, DISTILLED_NAMES, FAMILIES, UNSUPPORTED, Family
from canvas.models.pipeline_files import component_names, read_index
from canvas.request import GenerationRequest
from canvas.schedulers import MODEL_DEFAULT, SCHEDULERS

CONFIG_NAMES = ("config.json", "scheduler_config.json", "tokenizer_config.json")
# Classes whose size in latents is a multiple of two, for packing or patches without a `patch_size`.
PACKED_FAMILIES = {"flux", "flux2_klein", "qwen_image", "chroma", "z_image", "ovis_image", "krea2", "ernie_image"}
Configs = Mapping[str, Mapping[str, Any]]  # by component
ATTRIBUTE = "_capabilities"


@dataclass(frozen=True)
class Capabilities:
    """What acts with a model, and its defaults.

    `pipelines`: diffusers classes by task. `dtypes`: those that give images, the best first.
    `size_step`: the pixels of which both sides must be multiples. `prompt_tokens`: tokens that
    the model reads, without start and end tokens. `schedulers`: the names of SCHEDULERS that can
    replace the model's own. `lora_family`: "" if diffusers loads no LoRAs for it.
    """

    family: Family
    pipelines: Mapping[str, str]
    dtypes: tuple[str, ...]
    resolution: int
    size_step: int
    prompt_tokens: int
    tokenizer: str
    schedulers: tuple[str, ...]
    negative_prompt: bool
    guidance: bool
    variation_seed: bool
    strength: bool
    prompt_weighting: bool
    lora_family: str
    tiny_decoder: str
    steps: int
    guidance_scale: float
    components: tuple[str, ...] = field(default=(), repr=False)
    standard_unet: bool = False  # that of Stable Diffusion 1.5 or SDXL, for which ControlNets and adapters are made

    @property
    def has_unet(self) -> bool:
        """Whether a UNet draws the image, which repeats the subject beyond its native size."""
        return "unet" in self.components

    @property
    def edits_by_instruction(self) -> bool:
        """Whether the prompt says what to change in an image, which the pipeline takes without a strength."""
        return "image_to_image" in self.pipelines and not self.family.strength

    def choose_dtype(self, preferred: str, *, has_bfloat16: bool = True) -> str:
        """The preferred dtype if the model gives images in it, or the nearest that does.

        `has_bfloat16`: whether the device computes in bfloat16 without emulating it.
        """
        usable = [dtype for dtype in self.dtypes if dtype != "bfloat16" or has_bfloat16]
        return preferred if preferred in self.dtypes else next(iter(usable), "float32")


def read_capabilities(index: Mapping[str, Any], configs: Configs, name: str = "") -> Capabilities:
    """What the pipeline of a `model_index.json` can do; raises ModelUnsupported.

    `configs` are the configurations by component, as far as they are known: before a download
    none is, and the defaults of the family apply. `name` is the Hub id, folder or file.
    """
    class_name = str(index.get("_class_name", ""))
    family = BY_CLASS.get(class_name)
    if family is None:
        raise unsupported(class_name, name)
    denoiser = configs.get("unet") or configs.get("transformer") or {}
    distilled = _is_distilled(family, index, denoiser, name)
    steps, guidance_scale = family.distilled if distilled else (family.steps, family.guidance_scale)
    guidance = family.guidance != "none" and not (distilled and family.key in ("flux", "flux2_klein", "krea2"))
    inpaint_only = denoiser.get("in_channels") == 9
    has_unet = "unet" in index
    return Capabilities(
        family=family,
        pipelines={"inpaint": family.inpaint} if inpaint_only else family.tasks,
        # The tiny decoder of SDXS loses quality in float16, as its authors write.
        dtypes=("bfloat16", "float32") if "sdxs" in name.lower() else family.dtypes,
        resolution=_resolution(family, denoiser, configs),
        size_step=_size_step(family, denoiser, configs),
        prompt_tokens=family.tokens,
        tokenizer=family.tokenizer if family.tokenizer in index else "tokenizer",
        schedulers=_schedulers(family, configs.get("scheduler", {})),
        negative_prompt=family.negative_prompt and guidance,
        guidance=guidance,
        variation_seed=has_unet,
        strength=family.strength and bool(family.image_to_image),
        prompt_weighting=family.key in ("stable_diffusion", "stable_diffusion_xl"),
        lora_family=_lora_family(family, denoiser),
        tiny_decoder="" if _vae_class(index) == "AutoencoderTiny" else family.tiny_decoder,
        steps=steps,
        guidance_scale=guidance_scale,
        components=tuple(sorted(component_names(index))),
        standard_unet=_is_standard(family, denoiser),
    )


def read_folder(folder: Path, name: str = "") -> Capabilities:
    """`read_capabilities` of a diffusers folder; raises ModelCorrupted or ModelUnsupported."""
    index = read_index(folder)
    configs = {name: read_config(folder / name) for name in component_names(index)}
    return read_capabilities(index, configs, name or folder.name)


def read_config(folder: Path) -> dict[str, Any]:
    """The configuration of a component; empty if there is none that can be read."""
    for name in CONFIG_NAMES:
        try:
            config = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(config, dict):
            return config
    return {}


def adapt_spec(spec: ModelSpec, capabilities: Capabilities) -> ModelSpec:
    """The catalog entry with defaults that act: a scheduler that the model accepts.

    Those that the entry lacks are the model's own.
    """
    own = {
        "resolution": capabilities.resolution,
        "num_inference_steps": capabilities.steps,
        "guidance_scale": capabilities.guidance_scale,
        "scheduler": capabilities.schedulers[0],
    }
    spec = replace(spec, **{name: own[name] for name in spec.unset}, unset=())  # type: ignore[arg-type]
    return spec if spec.scheduler in capabilities.schedulers else replace(spec, scheduler=capabilities.schedulers[0])


def unsupported(class_name: str, name: str) -> ModelUnsupported:
    """The error for a pipeline of another class."""
    if reason := UNSUPPORTED.get(class_name):
        text = "{model} is no text-to-image model of its own. {reason}"
        return ModelUnsupported(LazyMessage(text, model=name or class_name, reason=reason))
    text = "{model} is a {pipeline}, which this program does not run. It runs {families}."
    labels = ", ".join(family.label for family in FAMILIES)
    return ModelUnsupported(LazyMessage(text, model=name or "The model", pipeline=class_name or "?", families=labels))


def _is_distilled(family: Family, index: Mapping[str, Any], denoiser: Mapping[str, Any], name: str) -> bool:
    if family.key in ("flux2_klein", "krea2") and index.get("is_distilled") is not None:
        return bool(index["is_distilled"])
    if family.key == "flux" and "guidance_embeds" in denoiser:
        return not denoiser["guidance_embeds"]
    return any(word in name.lower() for word in DISTILLED_NAMES.get(family.key, ()))


def _resolution(family: Family, denoiser: Mapping[str, Any], configs: Configs) -> int:
    sample = denoiser.get("sample_size")
    if not isinstance(sample, int):
        return family.resolution
    return sample * vae_scale(configs.get("vae", {}))


def _size_step(family: Family, denoiser: Mapping[str, Any], configs: Configs) -> int:
    vae = configs.get("vae")
    if not vae or not denoiser:
        return family.size_step
    patch = denoiser.get("patch_size") or denoiser.get("all_patch_size") or 1
    patch = max(patch) if isinstance(patch, Iterable) else patch
    if family.key in PACKED_FAMILIES:
        patch = 2
    return math.lcm(8, vae_scale(vae) * int(patch))


def vae_scale(vae: Mapping[str, Any]) -> int:
    """Pixels of a side per latent, from the configuration of a VAE."""
    if "temperal_downsample" in vae:  # Qwen-Image's, spelled so
        return int(2 ** len(vae["temperal_downsample"]))
    channels = vae.get("block_out_channels") or vae.get("encoder_block_out_channels")
    return int(2 ** (len(channels) - 1)) if channels else 8


def _schedulers(family: Family, config: Mapping[str, Any]) -> tuple[str, ...]:
    if family.schedulers == "lcm":
        return ("LCM",)
    flow = config.get("use_flow_sigmas") or str(config.get("_class_name", "")).startswith("FlowMatch")
    if family.schedulers == "own" or flow:
        return (MODEL_DEFAULT,)
    return tuple(SCHEDULERS)


def _lora_family(family: Family, denoiser: Mapping[str, Any]) -> str:
    if not family.lora:
        return ""
    if family.key == "stable_diffusion":
        return "sd2" if denoiser.get("cross_attention_dim") == 1024 else "sd1"
    return "sd1" if family.key == "lcm" else family.key


def _is_standard(family: Family, denoiser: Mapping[str, Any]) -> bool:
    layout = (tuple(denoiser.get("block_out_channels", ())), denoiser.get("layers_per_block"))
    standard = {
        "stable_diffusion": ((320, 640, 1280, 1280), 2, 768),
        "stable_diffusion_xl": ((320, 640, 1280), 2, 2048),
    }
    return (*layout, denoiser.get("cross_attention_dim")) == standard.get(family.key)


def _vae_class(index: Mapping[str, Any]) -> str:
    origin = index.get("vae")
    return str(origin[1]) if isinstance(origin, list | tuple) and len(origin) == 2 else ""


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
    text = "The model {model} supports text to image only."
    if len(capabilities.pipelines) > 1:
        text = "The model {model} does not support inpainting, only text to image and image to image."
    raise InvalidInput("task", task, message=LazyMessage(text, model=spec.key))
