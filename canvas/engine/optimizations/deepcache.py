"""Denoising with fewer full passes: deep features and guidance kept over some steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from canvas.engine.optimizations.cuda_graphs import CudaGraphCallable
from canvas.presets import SpeedPreset

if TYPE_CHECKING:
    import torch

CACHE_BRANCH_DEPTH = 2
ATTRIBUTE = "_recorded_passes"


class UNetForward:
    """What a pass of a `UNet2DConditionModel` computes, in whole or in part.

    The deep features are those before the last `layers` of the decoder.
    """

    def __init__(self, unet: Any, layers: int) -> None:
        self._unet = unet
        # Its class's own: at some times it has a stand-in.
        self._forward = partial(type(unet).forward, unet)
        self._layers = min(layers, len(unet.up_blocks[-1].resnets))

    def full_forward(
        self, sample: Any, timestep: Any, words: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction and the deep features, with the skip connection in the last channels."""
        deep: list[torch.Tensor] = []
        resnets = self._unet.up_blocks[-1].resnets
        hook = resnets[len(resnets) - self._layers].register_forward_pre_hook(
            lambda _, inputs: deep.append(inputs[0])
        )
        try:
            prediction = self._forward(sample, timestep, words, **options)[0]
        finally:
            hook.remove()
        return prediction, deep[0]

    def shallow_forward(
        self, sample: Any, timestep: Any, words: Any, deep: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor]:
        """The prediction with those features, by diffusers' `UNet2DConditionModel.forward`."""
        import torch

        unet = self._unet
        added = options.get("added_cond_kwargs")
        time = unet.get_time_embed(sample=sample, timestep=timestep)
        time = unet.time_embedding(time, options.get("timestep_cond"))
        more = unet.get_aug_embed(emb=time, encoder_hidden_states=words, added_cond_kwargs=added)
        time = time if more is None else time + more
        time = time if unet.time_embed_act is None else unet.time_embed_act(time)
        words = unet.process_encoder_hidden_states(
            encoder_hidden_states=words, added_cond_kwargs=added
        )
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for layer in range(self._layers - 1):
            hidden = _layer(unet.down_blocks[0], layer, hidden, time, words)
            skips.append(hidden)
        block = unet.up_blocks[-1]
        first = len(block.resnets) - self._layers
        hidden = deep[:, : deep.shape[1] - skips[-1].shape[1]]
        for layer in range(first, len(block.resnets)):
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _layer(block, layer, hidden, time, words)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return (unet.conv_out(hidden),)


def _layer(block: Any, layer: int, hidden: Any, time: Any, words: Any) -> Any:
    hidden = block.resnets[layer](hidden, time)
    if getattr(block, "has_cross_attention", False):
        attention = block.attentions[layer]
        hidden = attention(hidden, encoder_hidden_states=words, return_dict=False)[0]
    return hidden


class CudaGraphUNet:
    """The same, recorded as CUDA graphs; the timestep has to be a tensor on the GPU."""

    def __init__(self, passes: UNetForward) -> None:
        self.full_forward = CudaGraphCallable(passes.full_forward)
        self.shallow_forward = CudaGraphCallable(passes.shallow_forward)


def cuda_graph_unet(unet: Any, layers: int) -> CudaGraphUNet | None:
    """Those of a UNet on a GPU, which live and die with it; None where it wears LoRAs.

    They hold good for weights in one place of memory, as they were; a LoRA adds layers.
    """
    if unet.device.type != "cuda" or hasattr(unet, "peft_config"):
        return None
    place = (layers, next(unet.parameters()).data_ptr())
    kept = vars(unet).get(ATTRIBUTE)
    if kept is None or kept[0] != place:
        kept = place, CudaGraphUNet(UNetForward(unet, layers))
        vars(unet)[ATTRIBUTE] = kept
    found: CudaGraphUNet = kept[1]
    return found


# What a pass computes: everything; the wanted picture without its unguided twin; and of
# that only the outermost layers.
FULL, COND_ONLY, CACHED = "full", "wanted", "cached"
# Of a whole pass, what a cached one computes in the architecture of Stable Diffusion 1.5.
CACHED_STEP_COST = 0.22


class CachedUNetForward:
    """A stand-in for the forward of `UNet2DConditionModel` that follows a plan of passes.

    A full pass keeps the deep features and the difference that guidance makes. Later passes
    leave out the unguided twin and add the kept difference (as in FasterCache, arXiv
    2410.19355); cached ones also take the kept features and compute only the last layers anew
    (DeepCache, arXiv 2312.00858).
    """

    def __init__(self, passes: UNetForward | CudaGraphUNet, plan: list[str]) -> None:
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
        if kind == COND_ONLY:
            wanted = self._whole(*given, options)
        else:
            wanted = self._passes.shallow_forward(*given, self._deep, **options)[0]
        if guided and self._guidance is not None:
            return (torch.cat([wanted - self._guidance, wanted]),)
        return (wanted,)

    def _whole(self, sample: Any, timestep: Any, words: Any, options: Any) -> torch.Tensor:
        prediction, deep = self._passes.full_forward(sample, timestep, words, **options)
        self._deep = deep[-1:]  # guided: the second of the batch is the wanted picture
        return prediction


def cache_schedule(preset: SpeedPreset, num_inference_steps: int) -> list[str]:
    """What each step computes."""
    kinds = []
    for step in range(num_inference_steps):
        deep = (
            step < preset.warmup_steps or (step - preset.warmup_steps) % preset.cache_interval == 0
        )
        guided = step < preset.cfg_ratio * num_inference_steps
        kinds.append(CACHED if not deep else FULL if guided else COND_ONLY)
    return kinds


def unet_calls_per_step(preset: SpeedPreset, num_inference_steps: int, *, guided: bool) -> float:
    """How many whole passes for one picture a step takes on average, 2 with guidance."""
    cost = {FULL: 2.0 if guided else 1.0, COND_ONLY: 1.0, CACHED: CACHED_STEP_COST}
    kinds = cache_schedule(preset, num_inference_steps)
    return sum(cost[kind] for kind in kinds) / len(kinds)


@contextmanager
def apply_deepcache(
    pipeline: Any, passes: list[str], layers: int = CACHE_BRANCH_DEPTH
) -> Iterator[None]:
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


def make_forwards(unet: Any, passes: list[str], number: int) -> list[Any]:
    """As `apply_deepcache`, for the parts of one large picture: each keeps what is its own."""
    return [_forward(unet, passes, CACHE_BRANCH_DEPTH) or unet.forward for _ in range(number)]


def _forward(unet: Any, passes: list[str], layers: int) -> CachedUNetForward | None:
    """The stand-in that is quicker here, if there is one."""
    from diffusers import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        return None
    recorded = cuda_graph_unet(unet, layers)
    if recorded is None and set(passes) <= {FULL}:
        return None
    return CachedUNetForward(recorded or UNetForward(unet, layers), passes)
