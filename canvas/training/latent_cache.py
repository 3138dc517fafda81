"""A ring buffer of encoded scenes: the denoiser samples it while new scenes replace the oldest."""

from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from transformers import CLIPTextModel, CLIPTokenizer

from canvas.training.dataset import SceneDataset
from canvas.training.tokenizer import tokenize
from canvas.training.train_step import autocast

CAPTION_DROPOUT = 0.1  # fraction of captions replaced by the empty one


class FrozenEncoders:
    """The trained autoencoder, tokenizer and text encoder of a folder."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.device = device
        vae = AutoencoderTiny.from_pretrained(folder / "vae")
        text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
        self.vae = vae.float().eval().to(device, memory_format=torch.channels_last)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        self.text_encoder = text_encoder.float().eval().to(device)

    @torch.no_grad()
    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """[n, 3, h, w] in [-1, 1] to latents of unit variance, [n, c, h/8, w/8]."""
        with autocast(self.device):
            pixels = pixels.to(self.device, memory_format=torch.channels_last)
            latents = self.vae.encoder(pixels)
        return latents.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_captions(self, captions: list[str]) -> torch.Tensor:
        """Prompt embeddings [n, tokens, hidden size], as in the pipeline."""
        return self.encode_token_ids(tokenize(self.tokenizer, captions).to(self.device))

    @torch.no_grad()
    def encode_token_ids(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Prompt embeddings [n, tokens, hidden size]."""
        with autocast(self.device):
            hidden: torch.Tensor = self.text_encoder(token_ids).last_hidden_state
        return hidden.float()

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of unit variance to images in [-1, 1]."""
        images: torch.Tensor = self.vae.decoder(latents / self.vae.config.scaling_factor)
        return images.clamp(-1, 1)


class LatentRingBuffer:
    """Latents and prompt embeddings in half precision on the encoders' device."""

    def __init__(self, dataset: SceneDataset, encoders: FrozenEncoders, size: int) -> None:
        self.dataset = dataset
        self.encoders = encoders
        self.size = size
        self.empty_prompt = encoders.encode_captions([""])[0].half()
        latents, prompt_embeds = self._encode(1)
        self.latents = latents.new_zeros(size, *latents.shape[1:])
        self.prompt_embeds = prompt_embeds.new_zeros(size, *prompt_embeds.shape[1:])
        self.filled = 0
        self._next = 0

    def _encode(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        images, batch = self.dataset.sample_images(count)
        latents = self.encoders.encode_images(images)
        return latents.half(), self.encoders.encode_token_ids(batch.token_ids).half()

    def add(self, count: int) -> None:
        """Replace the oldest entries by `count` new scenes."""
        latents, prompt_embeds = self._encode(count)
        rows = (torch.arange(count, device=latents.device) + self._next) % self.size
        self.latents[rows], self.prompt_embeds[rows] = latents, prompt_embeds
        self._next = (self._next + count) % self.size
        self.filled = min(self.filled + count, self.size)

    def sample(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Random latents and prompt embeddings, some of the latter of the empty prompt."""
        device = self.latents.device
        rows = torch.randint(0, self.filled, (count,), generator=generator, device=device)
        dropped = torch.rand(count, 1, 1, generator=generator, device=device) < CAPTION_DROPOUT
        prompt_embeds = torch.where(dropped, self.empty_prompt, self.prompt_embeds[rows])
        return self.latents[rows].float(), prompt_embeds.float()
