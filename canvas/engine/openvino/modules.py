"""Replacements of a pipeline's UNet and VAE decoder that run OpenVINO graphs.

Imported on first use, because it imports torch and diffusers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from canvas.engine.openvino import int8, runtime
from canvas.engine.openvino.conversion import DECODER, SHALLOW_UNET, UNET, UNET_CONFIG
from canvas.engine.openvino.runtime import Graph


class OpenVinoUNet(UNet2DConditionModel):
    """A UNet without weights, from a folder of `convert_unet`.

    It is a subclass because pipelines require one. `full_forward` and `shallow_forward` are those
    of `UNetForward`. Graphs are compiled at the first pass of each size.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        module: Any = self
        torch.nn.Module.__init__(module)  # diffusers' would make the layers
        unet_config = json.loads((folder / UNET_CONFIG).read_text(encoding="utf-8"))
        module.register_to_config(**unet_config)
        if unet_config["addition_embed_type"]:  # SDXL's pipelines read the size of this layer
            in_features = unet_config["projection_class_embeddings_input_dim"]
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=in_features))
        self.folder = folder
        self.full = Graph(folder / UNET, config)
        self.shallow = Graph(folder / SHALLOW_UNET, config)
        self.int8: Graph | None = None
        self.recorder: int8.InputRecorder | None = None
        self.num_bytes = self.full.num_bytes
        self._compile_config = config
        module.eval()

    @property
    def engine(self) -> str:
        """The engine since the last `use_preset`."""
        return "openvino" if self.int8 is None else "openvino int8"

    def use_preset(self, preset: str) -> None:
        """Select the graph for the next image; only one of a large model is kept in memory."""
        wanted = int8.is_used(int8.read_report(self.folder), preset)
        if wanted != (self.int8 is not None):
            self.int8 = Graph(self.folder / int8.INT8_UNET, self._compile_config) if wanted else None
            if self.full.num_bytes > runtime.MAX_BYTES:
                self.full.release()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, *, return_dict: bool = True, **options: Any
    ) -> Any:
        prediction = self.full_forward(sample, timestep, encoder_hidden_states, **options)[0]
        return UNet2DConditionOutput(sample=prediction) if return_dict else (prediction,)

    def full_forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, **options: Any
    ) -> tuple[torch.Tensor, ...]:
        """The prediction and the features for `shallow_forward`; raises ValueError for unknown options."""
        inputs = (sample, _timestep(timestep), encoder_hidden_states, *_added_inputs(options))
        if self.recorder is not None:
            self.recorder.add([each.detach().float().numpy() for each in inputs])
        return (self.int8 or self.full)(*inputs)

    def shallow_forward(
        self, sample: Any, timestep: Any, encoder_hidden_states: Any, features: Any, **options: Any
    ) -> tuple[torch.Tensor, ...]:
        """The prediction from the features of an earlier step."""
        added = _added_inputs(options)
        return self.shallow(sample, _timestep(timestep), encoder_hidden_states, features, *added)


class OpenVinoDecoder(torch.nn.Module):
    """A replacement for `vae.decoder`, from a folder of `convert_decoder`; pixels in float32."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.graph = Graph(folder / DECODER, config)
        self.num_bytes = self.graph.num_bytes

    def forward(self, sample: torch.Tensor, latent_embeds: None = None) -> torch.Tensor:
        return torch.cat([self.graph(each)[0] for each in sample.split(1)])


def _timestep(timestep: Any) -> torch.Tensor:
    return torch.as_tensor(timestep, dtype=torch.float32).reshape(-1)[:1]


def _added_inputs(options: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """SDXL's inputs; raises ValueError for those that the graph does not have."""
    options = {name: value for name, value in options.items() if value is not None and name != "return_dict"}
    added = options.pop("added_cond_kwargs", None) or {}
    if options or set(added) - {"text_embeds", "time_ids"}:
        raise ValueError(f"OpenVINO's graph has no input {', '.join(options) or ', '.join(added)}")
    return tuple(added[name] for name in ("text_embeds", "time_ids") if name in added)
