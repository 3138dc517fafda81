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
from canvas.presets import FEW_STEP_LORA, MODES

TINY_DECODER = "taesd"


@dataclass(frozen=True)
class Extra:
    """Files of a repository on the Hub; `size` in bytes is about what they take."""

    repo_id: str
    files: tuple[str, ...]
    size: int
    what: str


EXTRAS = MappingProxyType(
    {
        FEW_STEP_LORA: Extra(
            "ByteDance/Hyper-SD",
            ("Hyper-SD15-4steps-lora.safetensors",),
            269_000_000,
            "weights for four steps",
        ),
        TINY_DECODER: Extra(
            "madebyollin/taesd",
            ("config.json", "diffusion_pytorch_model.safetensors"),
            10_000_000,
            "the tiny decoder",
        ),
    }
)


def needed(mode: str, spec: ModelSpec) -> tuple[str, ...]:
    """The extras that a model has in that mode."""
    chosen = MODES[mode]
    wanted = {FEW_STEP_LORA: chosen.few_step_weights, TINY_DECODER: chosen.tiny_decoder}
    return tuple(name for name in EXTRAS if wanted[name] and name in spec.accelerations)


def missing(mode: str, spec: ModelSpec, *, hub: Hub | None = None) -> tuple[str, ...]:
    """Those of them that are not on this disk."""
    return tuple(name for name in needed(mode, spec) if find(name, hub=hub) is None)


def find(name: str, *, hub: Hub | None = None) -> Path | None:
    """The folder that holds an extra on this disk; asks no network."""
    extra = EXTRAS[name]
    for folder in hub_cache.snapshots(hub or Hub(), extra.repo_id):
        if all((folder / file).exists() for file in extra.files):
            return folder
    return None


def fetch(
    mode: str,
    spec: ModelSpec,
    on_progress: Callable[[DownloadProgress], None],
    cancelled: threading.Event,
    *,
    hub: Hub | None = None,
) -> None:
    """Download what the mode lacks on this disk; raises a kind of ModelUnavailable."""
    hub = hub or Hub()
    for extra in (EXTRAS[name] for name in missing(mode, spec, hub=hub)):
        wanted = download.look_up(hub, extra.repo_id, partial(_files_of, extra), cancelled)
        download.fetch(hub, wanted, on_progress, cancelled)


def _files_of(extra: Extra, _: Iterable[str]) -> tuple[str, ...]:
    return extra.files
