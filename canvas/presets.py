"""Quality, Balanced, Turbo: what each lets the engine leave out for speed."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from canvas.catalog import ModelSpec

DISTILLED_LORA = "few_step_lora"
# Solvers of first order need about twice the steps; the second-order one finds their picture.
FIRST_ORDER_SCHEDULERS = ("DDIM", "PNDM", "Euler")
SECOND_ORDER_SCHEDULER = "DPM++ 2M"
# A model that usually takes no more steps is made for few: it keeps its scheduler.
DISTILLED_MAX_STEPS = 8


@dataclass(frozen=True)
class SpeedPreset:
    """How much is computed of what plain diffusers would compute.

    `steps_ratio` of the model's usual steps, at least `min_steps`; `few_step_ratio` of them
    where the model is made for few. After the first
    `lead` steps only each `interval`-th computes the whole model anew, and after
    `cfg_ratio` of the steps none computes the unguided twin.
    """

    description: str
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
        "quality": SpeedPreset("The picture as plain diffusers makes it"),
        # Chosen by measuring: mean SSIM 0.98 to Quality on an earlier built-in model of many
        # steps, 0.97 on that of four.
        "balanced": SpeedPreset(
            "Close to Quality in about half the time",
            steps_ratio=0.75,
            min_steps=8,
            few_step_ratio=0.5,
            cache_interval=2,
            cfg_ratio=0.6,
        ),
        "turbo": SpeedPreset(
            "The quickest picture of this model",
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


def uses_distilled_lora(preset: str, spec: ModelSpec) -> bool:
    """Whether the mode wants weights distilled for a few steps, and the model takes them."""
    return PRESETS[preset].distilled_lora and DISTILLED_LORA in spec.accelerations


def distilled_lora_missing(preset: str, spec: ModelSpec) -> bool:
    """Whether the mode wants such weights, and there are none for the model."""
    wanted = PRESETS[preset].distilled_lora and spec.num_inference_steps > DISTILLED_MAX_STEPS
    return wanted and not uses_distilled_lora(preset, spec)


def preset_defaults(preset: str, spec: ModelSpec) -> tuple[int, float, str]:
    """Steps, guidance and scheduler of a model in that mode, for what a request leaves open."""
    if uses_distilled_lora(preset, spec):
        # As its authors say: four steps, trailing DDIM, no guidance (ByteDance/Hyper-SD).
        return 4, 0.0, "DDIM trailing"
    chosen = PRESETS[preset]
    if spec.num_inference_steps <= DISTILLED_MAX_STEPS:
        steps = max(1, round(spec.num_inference_steps * chosen.few_step_ratio))
        return steps, spec.guidance_scale, spec.scheduler
    steps = max(round(spec.num_inference_steps * chosen.steps_ratio), chosen.min_steps)
    hurried = chosen.steps_ratio < 1 and spec.scheduler in FIRST_ORDER_SCHEDULERS
    scheduler = SECOND_ORDER_SCHEDULER if hurried else spec.scheduler
    return min(steps, spec.num_inference_steps), spec.guidance_scale, scheduler
