"""Generates images for batches of prompts, as StableDiffusionPipeline does for each."""

from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from canvas.training.denoiser import build_scheduler
from canvas.training.latent_cache import FrozenEncoders


class Sampler:
    """The models of a work folder or an exported pipeline."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.encoders = FrozenEncoders(folder, device)
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet").float()
        self.unet.eval().to(device)
        path = folder / "scheduler"
        self.scheduler = DDIMScheduler.from_pretrained(path) if path.exists() else build_scheduler()

    @torch.no_grad()
    def sample(self, prompts: list[str], num_inference_steps: int, guidance_scale: float, seed: int) -> torch.Tensor:
        """Images [n, 3, h, w] in [-1, 1]; a guidance scale of 1 or less disables guidance."""
        config = self.unet.config
        prompt_embeds = self.encoders.encode_captions(prompts)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(prompts), config.in_channels, config.sample_size, config.sample_size)
        latents = torch.randn(shape, generator=generator).to(self.encoders.device)
        self.scheduler.set_timesteps(num_inference_steps)
        for timestep in self.scheduler.timesteps:
            latents = self.step(latents, prompt_embeds, timestep, guidance_scale)
        return self.encoders.decode(latents)

    @torch.no_grad()
    def step(
        self, latents: torch.Tensor, prompt_embeds: torch.Tensor, timestep: torch.Tensor, guidance_scale: float = 1.0
    ) -> torch.Tensor:
        """The latents after the scheduler step at the timestep."""
        use_guidance = guidance_scale > 1
        if use_guidance:
            empty = self.encoders.encode_captions([""]).expand_as(prompt_embeds)
            prompt_embeds = torch.cat([empty, prompt_embeds])
        model_input = torch.cat([latents, latents]) if use_guidance else latents
        with torch.autocast(latents.device.type, torch.bfloat16):
            output = self.unet(model_input, timestep.to(latents.device), prompt_embeds).sample
        output = output.float()
        if use_guidance:
            unconditional, conditional = output.chunk(2)
            output = unconditional + guidance_scale * (conditional - unconditional)
        return self.scheduler.step(output, timestep, latents).prev_sample
