"""Scenes that are encoded already: a ring that fresh ones replace while the denoiser trains."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTextModel, CLIPTokenizer

from canvas.training.autoencoder import to_tensor
from canvas.training.presets import Preset
from canvas.training.scenes import SceneMaker
from canvas.training.sprites import Sprites
from canvas.training.text import TOKENS, tokenize


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
        with torch.autocast(self.device.type, torch.bfloat16):
            pixels = pixels.to(self.device, memory_format=torch.channels_last)
            latents = self.vae.encoder(pixels)
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> torch.Tensor:
        """[n, 77, hidden] as the pipeline computes them."""
        with torch.autocast(self.device.type, torch.bfloat16):
            ids = tokenize(self.tokenizer, captions).to(self.device)
            hidden: torch.Tensor = self.text_encoder(ids).last_hidden_state
        return hidden.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of unit spread to pictures in -1 … 1."""
        pictures: torch.Tensor = self.vae.decoder(latents / self.vae.config.scaling_factor)
        return pictures.clamp(-1, 1)


class SceneCache:
    """A ring of encoded scenes in half precision; every part lies on the encoders' device."""

    def __init__(
        self, sprites: Sprites, preset: Preset, encoders: Encoders, size: int, seed: int
    ) -> None:
        self.encoders = encoders
        self.maker = SceneMaker(sprites, preset.image_size, seed)
        side, width = preset.latent_size, encoders.text_encoder.config.hidden_size
        place = {"dtype": torch.float16, "device": encoders.device}
        self.latents = torch.zeros(size, preset.latent_channels, side, side, **place)
        self.hidden = torch.zeros(size, TOKENS, width, **place)
        self.empty = encoders.encode_captions([""])[0].half()
        self.filled = 0
        self._next = 0

    def add(self, count: int) -> None:
        """Compose and encode `count` fresh scenes in place of the oldest."""
        pictures, scenes = self.maker.batch(count)
        latents = self.encoders.encode_pictures(to_tensor(pictures)).half()
        hidden = self.encoders.encode_captions([scene.caption for scene in scenes]).half()
        rows = (torch.arange(count) + self._next) % len(self.latents)
        self.latents[rows], self.hidden[rows] = latents, hidden
        self._next = (self._next + count) % len(self.latents)
        self.filled = min(self.filled + count, len(self.latents))

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and text of scenes at random; every tenth caption is empty."""
        rows = torch.randint(0, self.filled, (count,), generator=generator)
        rows = rows.to(self.latents.device)
        hidden = self.hidden[rows]
        dropped = (torch.rand(count, generator=generator) < 0.1).to(hidden.device)
        hidden[dropped] = self.empty
        return self.latents[rows].float(), hidden.float()
