"""Add-ons: a distilled LoRA for few steps and a tiny VAE for presets, a depth estimator for control images."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from canvas.catalog import ModelSpec
from canvas.models import download, hub_cache
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub
from canvas.presets import DISTILLED_LORA, LIGHTNING_LORA, ONE_STEP_LORA, distilled_lora, tiny_decoder

TAESD, TAESDXL = "taesd", "taesdxl"
DEPTH = "depth"


@dataclass(frozen=True)
class Addon:
    """Files of a repository on the Hub; `size` is about how many bytes they have."""

    repo_id: str
    files: tuple[str, ...]
    size: int


ADDONS = MappingProxyType(
    {
        DISTILLED_LORA: Addon("ByteDance/Hyper-SD", ("Hyper-SD15-4steps-lora.safetensors",), 269_000_000),
        ONE_STEP_LORA: Addon("ByteDance/Hyper-SD", ("Hyper-SD15-1step-lora.safetensors",), 269_000_000),
        LIGHTNING_LORA: Addon("ByteDance/SDXL-Lightning", ("sdxl_lightning_4step_lora.safetensors",), 394_000_000),
        TAESD: Addon("madebyollin/taesd", ("config.json", "diffusion_pytorch_model.safetensors"), 10_000_000),
        TAESDXL: Addon("madebyollin/taesdxl", ("config.json", "diffusion_pytorch_model.safetensors"), 10_000_000),
        DEPTH: Addon("depth-anything/Depth-Anything-V2-Small-hf", ("config.json", "model.safetensors"), 99_200_000),
    }
)


def required(preset: str, spec: ModelSpec) -> tuple[str, ...]:
    """The add-ons that the preset uses and the model supports."""
    return tuple(name for name in (distilled_lora(preset, spec), tiny_decoder(preset, spec)) if name)


def missing(preset: str, spec: ModelSpec, *, hub: Hub | None = None) -> tuple[str, ...]:
    """The required add-ons that are not on disk."""
    return tuple(name for name in required(preset, spec) if find(name, hub=hub) is None)


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The cached folder of an add-on; makes no request."""
    return find_files(ADDONS[name], hub=hub)


def find_files(addon: Addon, *, hub: Hub | None = None) -> Path | None:
    """The cached folder with all files of an add-on."""
    for folder in hub_cache.snapshots(hub or Hub(), addon.repo_id):
        if all((folder / file).exists() for file in addon.files):
            return folder
    return None


def fetch(
    preset: str,
    spec: ModelSpec,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> None:
    """Download the missing add-ons; raises ModelUnavailable."""
    for name in missing(preset, spec, hub=hub):
        fetch_files(ADDONS[name], on_progress, cancelled, hub=hub)


def fetch_files(
    addon: Addon, on_progress: Callable[[DownloadProgress], None], cancelled: threading.Event, *, hub: Hub | None = None
) -> None:
    """Download the files of one add-on; raises ModelUnavailable."""
    hub = hub or Hub()
    plan = download.plan_files(hub, addon.repo_id, lambda _: addon.files, cancelled)
    download.download_files(hub, plan, on_progress, cancelled)
