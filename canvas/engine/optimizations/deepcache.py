"""DeepCache and guidance caching: denoising steps that reuse features and guidance."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from canvas.engine.optimizations.cuda_graphs import CudaGraphCallable
from canvas.engine.step_callback import replaced_method
from canvas.presets import SpeedPreset

if TYPE_CHECKING:
    import torch

# What a denoising step computes: the whole UNet for both branches of classifier-free guidance,
# for the conditional branch only, or only its outermost layers.
FULL, COND_ONLY, CACHED = "full", "cond_only", "cached"
CACHE_BRANCH_DEPTH = 2  # layers of the last decoder block that a cached step computes
# Cost of a cached step relative to a UNet call, in the architecture of Stable Diffusion 1.5.
CACHED_STEP_COST = 0.22
CACHE_ATTRIBUTE = "_cuda_graph_unet"
# Where a UNet has a forward method with ControlNets (`engine.controlnet.ControlledUNet`), if any
CONTROLLED = "_controlled_forward"


class UNetForward:
    """Full and partial forward passes of a `UNet2DConditionModel`.

    The cached features are the input of the last `branch_depth` layers of the decoder.
    """

    def __init__(self, unet: Any, branch_depth: int) -> None:
        self._unet = unet
        self._controlled = vars(unet).get(CONTROLLED)
        self._forward = self._controlled or partial(type(unet).forward, unet)  # unet.forward may be replaced
        self._residuals: list[torch.Tensor] | None = None  # of ControlNets in the last full pass
        self._branch_depth = min(branch_depth, len(unet.up_blocks[-1].resnets))

    def full_forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction and the features; their last channels are a skip connection."""
        features: list[torch.Tensor] = []
        resnets = self._unet.up_blocks[-1].resnets
        handle = resnets[len(resnets) - self._branch_depth].register_forward_pre_hook(
            lambda _, inputs: features.append(inputs[0])
        )
        try:
            prediction = self._forward(sample, timestep, encoder_hidden_states, **options)[0]
        finally:
            handle.remove()
        self._residuals = self._controlled.residuals if self._controlled else None
        return prediction, features[0]

    def shallow_forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, features: torch.Tensor, **options: Any
    ) -> tuple[torch.Tensor]:
        """The prediction from cached features; follows `UNet2DConditionModel.forward`."""
        import torch

        unet = self._unet
        added = options.get("added_cond_kwargs")
        temb = unet.get_time_embed(sample=sample, timestep=timestep)
        temb = unet.time_embedding(temb, options.get("timestep_cond"))
        aug_emb = unet.get_aug_embed(emb=temb, encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added)
        temb = temb if aug_emb is None else temb + aug_emb
        temb = temb if unet.time_embed_act is None else unet.time_embed_act(temb)
        encoder_hidden_states = unet.process_encoder_hidden_states(
            encoder_hidden_states=encoder_hidden_states, added_cond_kwargs=added
        )
        hidden = unet.conv_in(sample)
        skips = [hidden]
        for layer in range(self._branch_depth - 1):
            hidden = _run_layer(unet.down_blocks[0], layer, hidden, temb, encoder_hidden_states)
            skips.append(hidden)
        if self._residuals:
            skips = [skip + residual[-1:] for skip, residual in zip(skips, self._residuals, strict=False)]
        block = unet.up_blocks[-1]
        hidden = features[:, : features.shape[1] - skips[-1].shape[1]]
        for layer in range(len(block.resnets) - self._branch_depth, len(block.resnets)):
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _run_layer(block, layer, hidden, temb, encoder_hidden_states)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return (unet.conv_out(hidden),)


def _run_layer(block: Any, layer: int, hidden: Any, temb: Any, encoder_hidden_states: Any) -> Any:
    hidden = block.resnets[layer](hidden, temb)
    if getattr(block, "has_cross_attention", False):
        hidden = block.attentions[layer](hidden, encoder_hidden_states=encoder_hidden_states, return_dict=False)[0]
    return hidden


class CudaGraphUNet:
    """`UNetForward` with CUDA graphs; the timestep must be a tensor on the GPU."""

    def __init__(self, unet_forward: UNetForward) -> None:
        self.full_forward = CudaGraphCallable(unet_forward.full_forward)
        self.shallow_forward = CudaGraphCallable(unet_forward.shallow_forward)


def cuda_graph_unet(unet: Any, branch_depth: int) -> CudaGraphUNet | None:
    """The UNet's CUDA graphs, stored on it; None on a CPU, or with LoRAs, ControlNets or IP-Adapters.

    Graphs are valid only for weights at the same address, and each of these adds layers.
    """
    if unet.device.type != "cuda":
        return None
    if hasattr(unet, "peft_config") or CONTROLLED in vars(unet) or unet.encoder_hid_proj is not None:
        return None
    key = (branch_depth, next(unet.parameters()).data_ptr())
    cached = vars(unet).get(CACHE_ATTRIBUTE)
    if cached is None or cached[0] != key:
        cached = key, CudaGraphUNet(UNetForward(unet, branch_depth))
        vars(unet)[CACHE_ATTRIBUTE] = cached
    graphs: CudaGraphUNet = cached[1]
    return graphs


class CachedUNetForward:
    """Replaces the forward method of a `UNet2DConditionModel` and follows a cache schedule.

    A full step caches the features and the difference between the branches of classifier-free
    guidance. Later steps skip the unconditional branch and add that difference (as in
    FasterCache, arXiv 2410.19355); cached steps also reuse the features and compute only the
    last layers (DeepCache, arXiv 2312.00858).
    """

    def __init__(self, unet_forward: UNetForward | CudaGraphUNet, schedule: list[str]) -> None:
        self._unet_forward = unet_forward
        self._schedule = schedule
        self._step = 0
        self._features: torch.Tensor | None = None
        self._guidance: torch.Tensor | None = None

    def __call__(self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any) -> tuple[torch.Tensor]:
        """The prediction of one step; steps after the end of the schedule are full."""
        import torch

        kind = self._schedule[self._step] if self._step < len(self._schedule) else FULL
        self._step += 1
        guided = len(sample) == 2
        if self._features is None or kind == FULL or (guided and self._guidance is None):
            prediction = self._full_forward(sample, timestep, encoder_hidden_states, options)
            self._guidance = prediction[1:] - prediction[:1] if guided else None
            return (prediction,)
        if added := options.get("added_cond_kwargs"):
            options["added_cond_kwargs"] = {name: _conditional(value) for name, value in added.items()}
        args = (sample[-1:], timestep, encoder_hidden_states[-1:])
        if kind == COND_ONLY:
            cond = self._full_forward(*args, options)
        else:
            cond = self._unet_forward.shallow_forward(*args, self._features, **options)[0]
        if guided and self._guidance is not None:
            return (torch.cat([cond - self._guidance, cond]),)
        return (cond,)

    def _full_forward(self, sample: Any, timestep: Any, encoder_hidden_states: Any, options: Any) -> torch.Tensor:
        prediction, features = self._unet_forward.full_forward(sample, timestep, encoder_hidden_states, **options)
        self._features = features[-1:]  # with guidance, the conditional branch is the second
        return prediction


def _conditional(value: Any) -> Any:
    """The last element of a batch; IP-Adapters have a list of them."""
    return [each[-1:] for each in value] if isinstance(value, list | tuple) else value[-1:]


def cache_schedule(preset: SpeedPreset, num_inference_steps: int) -> list[str]:
    """The kind of each denoising step."""
    kinds = []
    for step in range(num_inference_steps):
        cached = max(0, step - preset.warmup_steps) % preset.cache_interval != 0
        guided = step < preset.cfg_ratio * num_inference_steps
        kinds.append(CACHED if cached else FULL if guided else COND_ONLY)
    return kinds


def unet_calls_per_step(preset: SpeedPreset, num_inference_steps: int, *, guided: bool) -> float:
    """The mean cost of a step in UNet calls for one image; a full step with guidance costs 2."""
    cost = {FULL: 2.0 if guided else 1.0, COND_ONLY: 1.0, CACHED: CACHED_STEP_COST}
    kinds = cache_schedule(preset, num_inference_steps)
    return sum(cost[kind] for kind in kinds) / len(kinds)


def apply_deepcache(
    pipeline: Any, schedule: list[str], branch_depth: int = CACHE_BRANCH_DEPTH
) -> AbstractContextManager[None]:
    """Let the pipeline's UNet follow the schedule for one image, inside the block.

    Other denoisers, and a UNet whose forward method is already replaced, are not changed.
    """
    unet: Any = getattr(pipeline, "unet", None)
    forward = _make_forward(unet, schedule, branch_depth)
    if forward is None or "forward" in vars(unet):
        return nullcontext()
    return replaced_method(unet, "forward", forward)


def make_forwards(unet: Any, schedule: list[str], count: int) -> list[Any]:
    """Forward methods with caches of their own, for the tiles of a large image."""
    return [_make_forward(unet, schedule, CACHE_BRANCH_DEPTH) or unet.forward for _ in range(count)]


def _make_forward(unet: Any, schedule: list[str], branch_depth: int) -> CachedUNetForward | None:
    """None if the UNet's own forward method is as fast."""
    from diffusers import UNet2DConditionModel

    if not isinstance(unet, UNet2DConditionModel):
        return None
    graphs = cuda_graph_unet(unet, branch_depth)
    if graphs is None and set(schedule) <= {FULL} and CONTROLLED not in vars(unet):
        return None
    # OpenVINO's UNet has graphs of both passes.
    passes: Any = unet if hasattr(unet, "shallow_forward") else graphs or UNetForward(unet, branch_depth)
    return CachedUNetForward(passes, schedule)
