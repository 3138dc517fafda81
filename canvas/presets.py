"""Quality, Balanced, Turbo: what each lets the engine leave out for speed."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from canvas.catalog import ModelSpec

FEW_STEP_LORA = "few_step_lora"
# Solvers of first order need about twice the steps; the second-order one finds their picture.
SLOW_SOLVERS = ("DDIM", "PNDM", "Euler")
FAST_SOLVER = "DPM++ 2M"
# A model that usually takes no more steps is made for few: it keeps its scheduler.
FEW = 8


@dataclass(frozen=True)
class Mode:
    """How much is computed of what plain diffusers would compute.

    `steps_share` of the model's usual steps, at least `least_steps`; `few_share` of them
    where the model is made for few. After the first
    `lead` steps only each `interval`-th computes the whole model anew, and after
    `guided_share` of the steps none computes the unguided twin.
    """

    description: str
    steps_share: float = 1.0
    least_steps: int = 1
    few_share: float = 1.0
    lead: int = 2
    interval: int = 1
    guided_share: float = 1.0
    few_step_weights: bool = False
    tiny_decoder: bool = False


MODES = MappingProxyType(
    {
        "quality": Mode("The picture as plain diffusers makes it"),
        # Chosen by measuring: mean SSIM 0.98 to Quality on an earlier built-in model of many
        # steps, 0.97 on that of four.
        "balanced": Mode(
            "Close to Quality in about half the time",
            steps_share=0.75,
            least_steps=8,
            few_share=0.5,
            interval=2,
            guided_share=0.6,
        ),
        "turbo": Mode(
            "The quickest picture of this model",
            steps_share=0.4,
            least_steps=6,
            few_share=0.25,
            interval=2,
            guided_share=0.6,
            few_step_weights=True,
            tiny_decoder=True,
        ),
    }
)


def few_steps(mode: str, spec: ModelSpec) -> bool:
    """Whether the mode wants weights distilled for a few steps, and the model takes them."""
    return MODES[mode].few_step_weights and FEW_STEP_LORA in spec.accelerations


def lacks_few_steps(mode: str, spec: ModelSpec) -> bool:
    """Whether the mode wants such weights, and there are none for the model."""
    wanted = MODES[mode].few_step_weights and spec.num_inference_steps > FEW
    return wanted and not few_steps(mode, spec)


def defaults(mode: str, spec: ModelSpec) -> tuple[int, float, str]:
    """Steps, guidance and scheduler of a model in that mode, for what a request leaves open."""
    if few_steps(mode, spec):
        # As its authors say: four steps, trailing DDIM, no guidance (ByteDance/Hyper-SD).
        return 4, 0.0, "DDIM trailing"
    chosen = MODES[mode]
    if spec.num_inference_steps <= FEW:
        steps = max(1, round(spec.num_inference_steps * chosen.few_share))
        return steps, spec.guidance_scale, spec.scheduler
    steps = max(round(spec.num_inference_steps * chosen.steps_share), chosen.least_steps)
    hurried = chosen.steps_share < 1 and spec.scheduler in SLOW_SOLVERS
    scheduler = FAST_SOLVER if hurried else spec.scheduler
    return min(steps, spec.num_inference_steps), spec.guidance_scale, scheduler
