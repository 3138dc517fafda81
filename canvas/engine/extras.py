"""Small downloads beside the models that make a mode fast: few-step weights, a tiny decoder."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from canvas.catalog import ModelSpec
from canvas.engine import hub_cache, hub_files
from canvas.engine.downloads import DownloadProgress
from canvas.engine.hub import Hub
from canvas.engine.loading import ONE_AT_A_TIME
from canvas.engine.loras import check_fit, read_lora
from canvas.errors import InvalidInput, ModelUnavailable
from canvas.modes import FEW_STEP_LORA, MODES

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
        wanted = hub_files.look_up(hub, extra.repo_id, partial(_files_of, extra), cancelled)
        hub_files.fetch(hub, wanted, on_progress, cancelled)


def _files_of(extra: Extra, _: Iterable[str]) -> tuple[str, ...]:
    return extra.files


def fuse_few_step_weights(pipeline: Any, *, hub: Hub | None = None) -> None:
    """Add the few-step LoRA to the UNet for good: it then costs nothing a step."""
    path = _there(FEW_STEP_LORA, hub) / EXTRAS[FEW_STEP_LORA].files[0]
    try:
        check_fit(read_lora(path), pipeline)
    except InvalidInput as error:
        raise ModelUnavailable(f"This model has no fast weights: {error}") from error
    pipeline.load_lora_weights(str(path.parent), weight_name=path.name, local_files_only=True)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


def with_tiny_decoder(pipeline: Any, *, hub: Hub | None = None) -> Any:
    """A pipeline of the same parts with the tiny decoder in place of its own."""
    from diffusers import AutoencoderTiny

    if isinstance(pipeline.vae, AutoencoderTiny):
        return pipeline
    folder = _there(TINY_DECODER, hub)
    with ONE_AT_A_TIME:
        decoder = AutoencoderTiny.from_pretrained(
            str(folder), dtype=pipeline.vae.dtype, local_files_only=True
        )
    parts = {**pipeline.components, "vae": decoder.to(pipeline.device)}
    quick = type(pipeline)(**parts, requires_safety_checker=False)
    quick.set_progress_bar_config(disable=True)
    return quick


def _there(name: str, hub: Hub | None) -> Path:
    folder = find(name, hub=hub)
    if folder is None:
        extra = EXTRAS[name]
        raise ModelUnavailable(
            f"Turbo needs {extra.what} ({extra.size / 1e6:.0f} MB from {extra.repo_id}), which "
            "are not on this disk yet. Connect to the internet once, or pick Balanced."
        )
    return folder
