"""The speed presets Quality, Balanced and Turbo, and the defaults that they imply."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from canvas.catalog import ModelSpec
from canvas.schedulers import MODEL_DEFAULT

DISTILLED_LORA = "few_step_lora"
ONE_STEP_LORA = "one_step_lora"
LIGHTNING_LORA = "lightning_lora"
# Steps, guidance scale and scheduler for LoRAs that were distilled for few steps, as their authors
# recommend (ByteDance/Hyper-SD, ByteDance/SDXL-Lightning).
DISTILLED_DEFAULTS = MappingProxyType(
    {
        ONE_STEP_LORA: (1, 0.0, "TCD"),
        DISTILLED_LORA: (4, 0.0, "DDIM trailing"),
        LIGHTNING_LORA: (4, 0.0, "Euler trailing"),
    }
)
TINY_DECODERS = ("taesd", "taesdxl")
# First-order solvers need about twice the steps of SECOND_ORDER_SCHEDULER for the same image.
FIRST_ORDER_SCHEDULERS = ("DDIM", "PNDM", "Euler")
SECOND_ORDER_SCHEDULER = "DPM++ 2M"
# A model with no more default steps was trained for few steps and keeps its scheduler.
DISTILLED_MAX_STEPS = 8


@dataclass(frozen=True)
class SpeedPreset:
    """How much of the computation of plain diffusers a preset leaves out.

    It takes `steps_ratio` of the model's default steps, at least `min_steps`, or
    `few_step_ratio` of them for a model of at most DISTILLED_MAX_STEPS. After `warmup_steps`
    only every `cache_interval`-th step runs the whole UNet, and after `cfg_ratio` of the steps
    the unconditional branch is skipped.
    """

    steps_ratio: float = 1.0
    min_steps: int = 1
    few_step_ratio: float = 1.0
    warmup_steps: int = 2
    cache_interval: int = 1
    cfg_ratio: float = 1.0
    distilled_lora: bool = False
    tiny_decoder: bool = False


PRESETS = MappingProxyType(
    {
        "quality": SpeedPreset(),
        # Measured: mean SSIM to Quality 0.98 for an earlier built-in model of many steps, and
        # 0.97 for later ones of four and of two.
        "balanced": SpeedPreset(steps_ratio=0.75, min_steps=8, few_step_ratio=0.5, cache_interval=2, cfg_ratio=0.6),
        "turbo": SpeedPreset(
            steps_ratio=0.4,
            min_steps=6,
            few_step_ratio=0.25,
            cache_interval=2,
            cfg_ratio=0.6,
            distilled_lora=True,
            tiny_decoder=True,
        ),
    }
)


def distilled_lora(preset: str, spec: ModelSpec) -> str:
    """The LoRA distilled for few steps that the preset applies to the model, "" for none."""
    if not PRESETS[preset].distilled_lora:
        return ""
    return next((name for name in DISTILLED_DEFAULTS if name in spec.accelerations), "")


def tiny_decoder(preset: str, spec: ModelSpec) -> str:
    """The small VAE that the preset uses with the model, "" for none."""
    if not PRESETS[preset].tiny_decoder:
        return ""
    return next((name for name in TINY_DECODERS if name in spec.accelerations), "")


def uses_distilled_lora(preset: str, spec: ModelSpec) -> bool:
    """Whether the preset applies a LoRA distilled for few steps and the model supports it."""
    return bool(distilled_lora(preset, spec))


def distilled_lora_missing(preset: str, spec: ModelSpec) -> bool:
    """Whether the preset would apply such a LoRA, but there is none for the model."""
    wanted = PRESETS[preset].distilled_lora and spec.num_inference_steps > DISTILLED_MAX_STEPS
    return wanted and not distilled_lora(preset, spec)


def preset_defaults(preset: str, spec: ModelSpec) -> tuple[int, float, str]:
    """The default steps, guidance scale and scheduler of a model with this preset."""
    if name := distilled_lora(preset, spec):
        return DISTILLED_DEFAULTS[name]
    chosen = PRESETS[preset]
    if spec.num_inference_steps <= DISTILLED_MAX_STEPS:
        if spec.scheduler == MODEL_DEFAULT:  # trained for exactly that many steps
            return spec.num_inference_steps, spec.guidance_scale, spec.scheduler
        steps = max(1, round(spec.num_inference_steps * chosen.few_step_ratio))
        return steps, spec.guidance_scale, spec.scheduler
    steps = max(round(spec.num_inference_steps * chosen.steps_ratio), chosen.min_steps)
    replaced = chosen.steps_ratio < 1 and spec.scheduler in FIRST_ORDER_SCHEDULERS
    scheduler = SECOND_ORDER_SCHEDULER if replaced else spec.scheduler
    return min(steps, spec.num_inference_steps), spec.guidance_scale, scheduler
