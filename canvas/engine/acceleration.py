"""Denoising with fewer full passes: deep features and guidance kept over some steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

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

    A full pass keeps the features before the last `layers` of the decoder, and the
    difference that guidance makes. Later passes leave out the unguided twin and add the
    kept difference (as in FasterCache, arXiv 2410.19355); cached ones also take the kept
    features and compute only those last layers anew (DeepCache, arXiv 2312.00858).
    """

    def __init__(self, unet: Any, plan: list[str], layers: int = 2) -> None:
        self._unet = unet
        self._full = unet.forward
        self._plan = plan
        self._layers = min(layers, len(unet.up_blocks[-1].resnets))
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
            result = self._with_features(sample, timestep, encoder_hidden_states, options)
            self._guidance = result[1:] - result[:1] if guided else None
            return (result,)
        one_pass = self._with_features if kind == WANTED else self._last_layers
        added = options.pop("added_cond_kwargs", None)
        if added:
            options["added_cond_kwargs"] = {name: value[-1:] for name, value in added.items()}
        wanted = one_pass(sample[-1:], timestep, encoder_hidden_states[-1:], options)
        return (torch.cat([wanted - self._guidance, wanted]) if guided else wanted,)

    def _with_features(self, sample: Any, timestep: Any, words: Any, options: Any) -> Any:
        resnets = self._unet.up_blocks[-1].resnets
        hook = resnets[len(resnets) - self._layers].register_forward_pre_hook(self._keep)
        try:
            return self._full(sample, timestep, words, **options)[0]
        finally:
            hook.remove()

    def _keep(self, _: Any, inputs: tuple[Any, ...]) -> None:
        # Guided: the second of the batch is the wanted picture. The rest of the channels
        # are the skip connection, which every pass computes anew.
        self._deep = inputs[0][-1:]

    def _last_layers(self, sample: Any, timestep: Any, words: Any, options: Any) -> Any:
        """As in diffusers' `UNet2DConditionModel.forward`, for the layers that are not kept."""
        import torch

        assert self._deep is not None  # noqa: S101 - the first pass is full
        unet = self._unet
        added = options.get("added_cond_kwargs")
        time = unet.time_embedding(unet.get_time_embed(sample=sample, timestep=timestep))
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
        hidden = self._deep[:, : self._deep.shape[1] - skips[-1].shape[1]]
        for layer in range(first, len(block.resnets)):
            hidden = torch.cat([hidden, skips.pop()], dim=1)
            hidden = _layer(block, layer, hidden, time, words)
        if unet.conv_norm_out:
            hidden = unet.conv_act(unet.conv_norm_out(hidden))
        return unet.conv_out(hidden)


def _layer(block: Any, layer: int, hidden: Any, time: Any, words: Any) -> Any:
    hidden = block.resnets[layer](hidden, time)
    if getattr(block, "has_cross_attention", False):
        attention = block.attentions[layer]
        hidden = attention(hidden, encoder_hidden_states=words, return_dict=False)[0]
    return hidden


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
def shortcuts(pipeline: Any, passes: list[str], layers: int = 2) -> Iterator[None]:
    """Let the pipeline's UNet follow the plan for one picture; other models are left alone."""
    unet: Any = getattr(pipeline, "unet", None)
    if set(passes) <= {FULL} or not _fits(unet):
        yield
        return
    unet.forward = ShortcutForward(unet, passes, layers)
    try:
        yield
    finally:
        del unet.forward


def forwards(unet: Any, passes: list[str], number: int) -> list[Any]:
    """As `shortcuts`, for the parts of one large picture: each keeps what is its own."""
    if set(passes) <= {FULL} or not _fits(unet):
        return [unet.forward] * number
    return [ShortcutForward(unet, passes) for _ in range(number)]


def _fits(unet: Any) -> bool:
    from diffusers import UNet2DConditionModel

    return isinstance(unet, UNet2DConditionModel)
