"""Scenes that are encoded already: a ring that fresh ones replace while the denoiser trains."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTextModel, CLIPTokenizer

from canvas.training.checkpoints import autocast
from canvas.training.source import SceneSource
from canvas.training.tokens import tokenize


class Encoders:
    """The frozen autoencoder, tokenizer and text encoder of the work folder."""

    def __init__(self, work: Path, device: torch.device) -> None:
        self.device = device
        vae = AutoencoderTiny.from_pretrained(work / "vae")
        text_encoder = CLIPTextModel.from_pretrained(work / "text_encoder")
        self.vae = vae.float().eval().to(device, memory_format=torch.channels_last)
        self.tokenizer = CLIPTokenizer.from_pretrained(work / "tokenizer")
        self.text_encoder = text_encoder.float().eval().to(device)

    @torch.no_grad()
    def encode_pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] in -1 … 1 to latents of unit spread, [n, c, h/8, w/8]."""
        with autocast(self.device):
            pixels = pixels.to(self.device, memory_format=torch.channels_last)
            latents = self.vae.encoder(pixels)
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> torch.Tensor:
        """[n, tokens, hidden] as the pipeline computes them."""
        return self.encode_ids(tokenize(self.tokenizer, captions).to(self.device))

    @torch.no_grad()
    def encode_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """The same of token ids."""
        with autocast(self.device):
            hidden: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return hidden.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of unit spread to pictures in -1 … 1."""
        pictures: torch.Tensor = self.vae.decoder(latents / self.vae.config.scaling_factor)
        return pictures.clamp(-1, 1)


class SceneCache:
    """A ring of encoded scenes in half precision; every part lies on the encoders' device."""

    def __init__(self, source: SceneSource, encoders: Encoders, size: int) -> None:
        self.source = source
        self.encoders = encoders
        self.size = size
        self.empty = encoders.encode_captions([""])[0].half()
        latents, hidden = self._encode(1)
        self.latents = latents.new_zeros(size, *latents.shape[1:])
        self.hidden = hidden.new_zeros(size, *hidden.shape[1:])
        self.filled = 0
        self._next = 0

    def _encode(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels, rows = self.source.batch(count)
        latents = self.encoders.encode_pictures(pixels)
        return latents.half(), self.encoders.encode_ids(rows.ids).half()

    def add(self, count: int) -> None:
        """Compose and encode `count` fresh scenes in place of the oldest."""
        latents, hidden = self._encode(count)
        rows = (torch.arange(count, device=latents.device) + self._next) % self.size
        self.latents[rows], self.hidden[rows] = latents, hidden
        self._next = (self._next + count) % self.size
        self.filled = min(self.filled + count, self.size)

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and text of scenes at random; every tenth caption is empty."""
        device = self.latents.device
        rows = torch.randint(0, self.filled, (count,), generator=generator, device=device)
        dropped = torch.rand(count, 1, 1, generator=generator, device=device) < 0.1
        hidden = torch.where(dropped, self.empty, self.hidden[rows])
        return self.latents[rows].float(), hidden.float()
