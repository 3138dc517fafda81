"""Denoising with fewer full passes: deep features and guidance kept over some steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from canvas.engine.passes import KEPT_LAYERS, Passes, RecordedPasses, recorded_passes
from canvas.modes import Mode

if TYPE_CHECKING:
    import torch

# What a pass computes: everything; the wanted picture without its unguided twin; and of
# that only the outermost layers.
FULL, WANTED, CACHED = "full", "wanted", "cached"
# Of a whole pass, what a cached one computes in the architecture of Stable Diffusion 1.5.
SHARE_OF_CACHED = 0.22


class ShortcutForward:
    """A stand-in for the forward of `UNet2DConditionModel` that follows a plan of passes.

    A full pass keeps the deep features and the difference that guidance makes. Later passes
    leave out the unguided twin and add the kept difference (as in FasterCache, arXiv
    2410.19355); cached ones also take the kept features and compute only the last layers anew
    (DeepCache, arXiv 2312.00858).
    """

    def __init__(self, passes: Passes | RecordedPasses, plan: list[str]) -> None:
        self._passes = passes
        self._plan = plan
        self._step = 0
        self._deep: torch.Tensor | None = None
        self._guidance: torch.Tensor | None = None

    def __call__(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any
    ) -> tuple[torch.Tensor]:
        """One pass; past the end of the plan all are full."""
        import torch

        kind = self._plan[self._step] if self._step < len(self._plan) else FULL
        self._step += 1
        guided = len(sample) == 2
        if self._deep is None or kind == FULL or (guided and self._guidance is None):
            result = self._whole(sample, timestep, encoder_hidden_states, options)
            self._guidance = result[1:] - result[:1] if guided else None
            return (result,)
        if added := options.get("added_cond_kwargs"):
            options["added_cond_kwargs"] = {name: value[-1:] for name, value in added.items()}
        given = (sample[-1:], timestep, encoder_hidden_states[-1:])
        if kind == WANTED:
            wanted = self._whole(*given, options)
        else:
            wanted = self._passes.last_layers(*given, self._deep, **options)[0]
        if guided and self._guidance is not None:
            return (torch.cat([wanted - self._guidance, wanted]),)
        return (wanted,)

    def _whole(self, sample: Any, timestep: Any, words: Any, options: Any) -> torch.Tensor:
        prediction, deep = self._passes.whole(sample, timestep, words, **options)
        self._deep = deep[-1:]  # guided: the second of the batch is the wanted picture
        return prediction


def plan(mode: Mode, num_inference_steps: int) -> list[str]:
    """What each step computes."""
    kinds = []
    for step in range(num_inference_steps):
        deep = step < mode.lead or (step - mode.lead) % mode.interval == 0
        guided = step < mode.guided_share * num_inference_steps
        kinds.append(CACHED if not deep else FULL if guided else WANTED)
    return kinds


def passes_per_step(mode: Mode, num_inference_steps: int, *, guided: bool) -> float:
    """How many whole passes for one picture a step takes on average, 2 with guidance."""
    cost = {FULL: 2.0 if guided else 1.0, WANTED: 1.0, CACHED: SHARE_OF_CACHED}
    kinds = plan(mode, num_inference_steps)
    return sum(cost[kind] for kind in kinds) / len(kinds)


@contextmanager
def shortcuts(pipeline: Any, passes: list[str], layers: int = KEPT_LAYERS) -> Iterator[None]:
    """Let the pipeline's UNet follow the plan for one picture.

    Other models are left alone, and so is a UNet that has a stand-in already.
    """
    unet: Any = getattr(pipeline, "unet", None)
    forward = _forward(unet, passes, layers)
    if forward is None or "forward" in vars(unet):
        yield
        return
    unet.forward = forward
    try:
        yield
    finally:
        del unet.forward


def forwards(unet: Any, passes: list[str], number: int) -> list[Any]:
    """As `shortcuts`, for the parts of one large picture: each keeps what is its own."""
    return [_forward(unet, passes, KEPT_LAYERS) or unet.forward for _ in range(number)]


def _forward(unet: Any, passes: list[str], layers: int) -> ShortcutForward | None:
    """The stand-in that is quicker here, if there is one."""
    from diffusers import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        return None
    recorded = recorded_passes(unet, layers)
    if recorded is None and set(passes) <= {FULL}:
        return None
    return ShortcutForward(recorded or Passes(unet, layers), passes)
