"""Small downloads beside the models that make a mode fast: few-step weights, a tiny decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

from canvas.catalog import ModelSpec
from canvas.models import download, hub_cache
from canvas.models.download import DownloadProgress
from canvas.models.hub_client import Hub
from canvas.presets import DISTILLED_LORA, PRESETS

TAESD = "taesd"


@dataclass(frozen=True)
class Addon:
    """Files of a repository on the Hub; `size` in bytes is about what they take."""

    repo_id: str
    files: tuple[str, ...]
    size: int
    label: str


ADDONS = MappingProxyType(
    {
        DISTILLED_LORA: Addon(
            "ByteDance/Hyper-SD",
            ("Hyper-SD15-4steps-lora.safetensors",),
            269_000_000,
            "weights for four steps",
        ),
        TAESD: Addon(
            "madebyollin/taesd",
            ("config.json", "diffusion_pytorch_model.safetensors"),
            10_000_000,
            "the tiny decoder",
        ),
    }
)


def required(preset: str, spec: ModelSpec) -> tuple[str, ...]:
    """The extras that a model has in that mode."""
    chosen = PRESETS[preset]
    wanted = {DISTILLED_LORA: chosen.distilled_lora, TAESD: chosen.tiny_decoder}
    return tuple(name for name in ADDONS if wanted[name] and name in spec.accelerations)


def missing(preset: str, spec: ModelSpec, *, hub: Hub | None = None) -> tuple[str, ...]:
    """Those of them that are not on this disk."""
    return tuple(name for name in required(preset, spec) if find(name, hub=hub) is None)


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The folder that holds an extra on this disk; asks no network."""
    extra = ADDONS[name]
    for folder in hub_cache.snapshots(hub or Hub(), extra.repo_id):
        if all((folder / file).exists() for file in extra.files):
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
    """Download what the mode lacks on this disk; raises a kind of ModelUnavailable."""
    hub = hub or Hub()
    for extra in (ADDONS[name] for name in missing(preset, spec, hub=hub)):
        wanted = download.resolve_files(hub, extra.repo_id, partial(_files_of, extra), cancelled)
        download.fetch(hub, wanted, on_progress, cancelled)


def _files_of(extra: Addon, _: Iterable[str]) -> tuple[str, ...]:
    return extra.files
