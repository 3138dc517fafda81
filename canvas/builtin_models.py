"""The built-in models, as entries of a `models.toml`; sizes are those of the download.

Bytes, licences and settings are those of the repositories in November 2026.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_PACKAGE = Path(__file__).resolve().parent
# An installed wheel has the assets inside the package, a checkout beside it.
ASSETS = next(folder for folder in (_PACKAGE / "assets", _PACKAGE.parent / "assets") if folder.is_dir())
ANY_COMPUTER, SD15, LARGE = "Any computer", "Stable Diffusion 1.5", "16 GB or a GPU"
STABILITY_TERMS = "https://stability.ai/license"

_SMALL_SD = {
    "name": "OFA-Sys/small-stable-diffusion-v0",
    "size": "3.2 GB",
    "resolution": 512,
    "type": "stable_diffusion",
    "gflops_per_step": 523,
    # Eight tensors have other shapes than in SD 1.5, so its LoRAs do not fit.
    "accelerations": ["taesd"],
    "license": "openrail",
    "group": SD15,
}
_SD15 = {
    "type": "stable_diffusion",
    "resolution": 512,
    "gflops_per_step": 803,
    "size": "4.3 GB",  # without fp16 files in the repository
    "accelerations": ["few_step_lora", "taesd"],
    "license": "creativeml-openrail-m",
    "group": SD15,
}

BUILTIN_MODELS: Mapping[str, Mapping[str, Any]] = {
    "starter": {
        "name": str(ASSETS / "starter"),
        "size": "built in",
        "speed": "Instant",
        "quality": "Storybook",
        "resolution": 256,
        "type": "stable_diffusion",
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "scheduler": "DDIM",
        "gflops_per_step": 1.0,
        "prompt_tokens": 27,
        "license": "mit",
        "group": ANY_COMPUTER,
        "description": "Storybook scenes of one or two things in a place; no download",
    },
    "sdxs": {
        "name": "IDKiro/sdxs-512-dreamshaper",
        "size": "1.8 GB",
        "speed": "Fastest",
        "quality": "Good",
        "resolution": 512,
        "type": "stable_diffusion",
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "scheduler": "Model default",
        "gflops_per_step": 300,  # in proportion to its parameters, 315 of 860 million
        "license": "openrail++",
        "group": ANY_COMPUTER,
        "description": "General images in one step, the fastest model to download; text to image only",
    },
    "sd-turbo": {
        "name": "stabilityai/sd-turbo",
        "size": "2.6 GB",
        "speed": "Very fast",
        "quality": "Good",
        "resolution": 512,
        "type": "stable_diffusion",
        "num_inference_steps": 1,
        "guidance_scale": 0.0,
        "scheduler": "Model default",
        "gflops_per_step": 803,
        "accelerations": ["taesd"],
        "license": "stabilityai-community",
        "terms": STABILITY_TERMS,
        "group": ANY_COMPUTER,
        "description": "The best images of one step in 4 GB, of 1 to 4 steps",
    },
    "tiny": {
        **_SMALL_SD,
        "speed": "Fast",
        "quality": "Fair",
        "num_inference_steps": 15,
        "description": "The smallest general model",
    },
    "small": {
        **_SD15,
        "name": "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "size": "2.1 GB",
        "mirrors": ["sd-legacy/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5"],
        "speed": "Medium",
        "quality": "Good",
        "description": "Stable Diffusion 1.5, the classic",
    },
    "dreamshaper": {
        **_SD15,
        "name": "Lykon/dreamshaper-8",
        "size": "2.1 GB",
        "mirrors": ["Lykon/DreamShaper"],
        "speed": "Medium",
        "quality": "Very Good",
        "scheduler": "DEIS",
        "description": "Painterly and photographic, a good all-rounder",
    },
    "openjourney": {
        **_SD15,
        "name": "prompthero/openjourney-v4",
        "mirrors": ["prompthero/openjourney"],
        "speed": "Medium",
        "quality": "Very Good",
        "description": "Midjourney-like illustration",
    },
    "mini-sd": {
        **_SMALL_SD,
        "speed": "Medium",
        "quality": "Good",
        "num_inference_steps": 25,
        "description": "The weights of tiny with more steps",
    },
    "portrait": {
        **_SD15,
        "name": "wavymulder/portraitplus",
        "speed": "Medium",
        "quality": "Excellent for faces",
        "trigger_words": "portrait+ style",
        "description": "Portraits, best at 1:1",
    },
    "realistic": {
        **_SD15,
        "name": "SG161222/Realistic_Vision_V5.1_noVAE",
        "size": "2.3 GB",
        "components": {"vae": "stabilityai/sd-vae-ft-mse"},
        "speed": "Medium",
        "quality": "Very Good",
        "num_inference_steps": 25,
        "guidance_scale": 5.0,
        "description": "Photographs of people and places (Realistic Vision 5.1)",
    },
    "anime": {
        **_SD15,
        "name": "Meina/MeinaMix_V11",
        "speed": "Medium",
        "quality": "Very Good",
        "num_inference_steps": 25,
        "guidance_scale": 7.0,
        "description": "Anime and manga (MeinaMix V11)",
    },
    "sdxl": {
        "name": "stabilityai/stable-diffusion-xl-base-1.0",
        "components": {"vae": "madebyollin/sdxl-vae-fp16-fix"},
        "size": "7.1 GB",
        "speed": "Slow without a GPU",
        "quality": "Excellent",
        "resolution": 1024,
        "type": "stable_diffusion_xl",
        "num_inference_steps": 25,
        "guidance_scale": 6.0,
        "scheduler": "Euler",
        "accelerations": ["lightning_lora", "taesdxl"],
        "license": "openrail++",
        "group": LARGE,
        "description": "Large images, and the most LoRAs; Turbo uses SDXL-Lightning with 4 steps",
    },
    "flux-klein": {
        "name": "black-forest-labs/FLUX.2-klein-4B",
        "size": "16.0 GB",
        "speed": "Slow without a GPU",
        "quality": "Excellent",
        "resolution": 512,
        "type": "auto",
        "num_inference_steps": 4,
        "guidance_scale": 1.0,
        "scheduler": "Model default",
        "gflops_per_step": 11_900,  # 2 × 3.88 billion parameters × 1536 tokens
        "license": "apache-2.0",
        "group": LARGE,
        "description": "Follows long prompts, writes text, and edits images by instruction",
    },
    "z-image": {
        "name": "Tongyi-MAI/Z-Image-Turbo",
        # The repository's own transformer is in float32 and has twice the bytes.
        "components": {
            "transformer": "Comfy-Org/z_image_turbo:split_files/diffusion_models/z_image_turbo_bf16.safetensors"
        },
        "size": "20.5 GB",
        "speed": "Slow without a GPU",
        "quality": "Excellent",
        "resolution": 512,
        "type": "auto",
        "num_inference_steps": 8,
        "guidance_scale": 0.0,
        "scheduler": "Model default",
        "gflops_per_step": 13_800,  # 2 × 6.15 billion parameters × 1124 tokens
        "license": "apache-2.0",
        "group": LARGE,
        "description": "The best photographs of its size, from long prompts",
    },
}
