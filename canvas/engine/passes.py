"""What a pass of a UNet computes, in whole or in part, and its recordings on a GPU."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from canvas.engine.graphs import Recorded

if TYPE_CHECKING:
    import torch

KEPT_LAYERS = 2
ATTRIBUTE = "_recorded_passes"


class Passes:
    """What a pass of a `UNet2DConditionModel` computes, in whole or in part.

    The deep features are those before the last `layers` of the decoder.
    """

    def __init__(self, unet: Any, layers: int) -> None:
        self._unet = unet
        # Its class's own: at some times it has a stand-in.
        self._forward = partial(type(unet).forward, unet)
        self._layers = min(layers, len(unet.up_blocks[-1].resnets))

    def whole(
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

    def last_layers(
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


class RecordedPasses:
    """The same, recorded as CUDA graphs; the timestep has to be a tensor on the GPU."""

    def __init__(self, passes: Passes) -> None:
        self.whole = Recorded(passes.whole)
        self.last_layers = Recorded(passes.last_layers)


def recorded_passes(unet: Any, layers: int) -> RecordedPasses | None:
    """Those of a UNet on a GPU, which live and die with it; None where it wears LoRAs.

    They hold good for weights in one place of memory, as they were; a LoRA adds layers.
    """
    if unet.device.type != "cuda" or hasattr(unet, "peft_config"):
        return None
    place = (layers, next(unet.parameters()).data_ptr())
    kept = vars(unet).get(ATTRIBUTE)
    if kept is None or kept[0] != place:
        kept = place, RecordedPasses(Passes(unet, layers))
        vars(unet)[ATTRIBUTE] = kept
    found: RecordedPasses = kept[1]
    return found
