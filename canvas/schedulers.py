"""Schedulers by their common names, with their diffusers classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any


@dataclass(frozen=True)
class SchedulerSpec:
    """A diffusers class, and options that override the model's scheduler configuration.

    Without a class it is the model's own scheduler.
    """

    class_name: str
    options: Mapping[str, Any] = field(default_factory=dict)


MODEL_DEFAULT = "Model default"
SCHEDULERS = MappingProxyType(
    {
        "DPM++ 2M": SchedulerSpec("DPMSolverMultistepScheduler"),
        "DPM++ 2M Karras": SchedulerSpec("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        "UniPC": SchedulerSpec("UniPCMultistepScheduler"),
        "DEIS": SchedulerSpec("DEISMultistepScheduler"),
        "Euler": SchedulerSpec("EulerDiscreteScheduler"),
        "Euler trailing": SchedulerSpec("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
        "Euler a": SchedulerSpec("EulerAncestralDiscreteScheduler"),
        "DDIM": SchedulerSpec("DDIMScheduler"),
        "DDIM trailing": SchedulerSpec("DDIMScheduler", {"timestep_spacing": "trailing"}),
        "PNDM": SchedulerSpec("PNDMScheduler", {"skip_prk_steps": True}),
        "LCM": SchedulerSpec("LCMScheduler"),
        "TCD": SchedulerSpec("TCDScheduler"),
        MODEL_DEFAULT: SchedulerSpec(""),
    }
)
