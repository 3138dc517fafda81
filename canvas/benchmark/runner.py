"""How quick the modes are beside plain diffusers, measured in turns on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from canvas.benchmark import model_under_test, similarity
from canvas.benchmark.model_under_test import PROMPT, BenchmarkModel, StageTimings, load_subject
from canvas.benchmark.peak_memory import peak_memory
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.optimizations.deepcache import CACHED, COND_ONLY, FULL, cache_schedule
from canvas.presets import PRESETS, uses_distilled_lora
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.catalog import ModelSpec

PLAIN, ORIGINAL_SCRIPT = "plain diffusers", "the original program"
PLAIN_STEPS, ORIGINAL_STEPS = 25, 20
# A picture that takes plain diffusers longer than this is added up from its parts.
TOO_LONG = 60.0  # seconds
TURNS_WHOLE, TURNS_PARTS = 5, 3


@dataclass(frozen=True)
class Result:
    """One way to make the picture; `ssim` and `psnr` are to the picture of Quality."""

    name: str
    steps: int
    seconds: float
    seconds_per_step: float
    ratio: float  # how many times as fast as plain diffusers
    peak_memory: int | None = None  # bytes
    ssim: float | None = None
    psnr: float | None = None  # dB


@dataclass(frozen=True)
class BenchmarkReport:
    """The rows and what they were measured on; `added_up` means from single passes and parts."""

    model: str
    size: int
    machine: str
    cores: int
    device: str
    dtype: str
    rows: tuple[Result, ...]
    added_up: bool
    turns: int
    ceiling_teraflops: float
    unet_teraflops: float
    own_share: float  # of a Quality picture, outside text encoder, UNet and decoder

    @property
    def share_of_ceiling(self) -> float:
        """How much of the measured speed of matrix products the UNet reaches, 0 to 1."""
        return self.unet_teraflops / self.ceiling_teraflops

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "share_of_ceiling": self.share_of_ceiling}

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> BenchmarkReport:
        """What `to_dict` gave, here or on another machine."""
        fields = {name: value for name, value in told.items() if name != "share_of_ceiling"}
        return cls(**{**fields, "rows": tuple(Result(**row) for row in told["rows"])})


def run_benchmark(
    spec: ModelSpec | None,
    device: Device,
    *,
    size: int | None = None,
    full: bool = False,
    turns: int | None = None,
    memory: bool = True,
) -> BenchmarkReport:
    """Measure a model that is on disk, or with None the synthetic Stable Diffusion 1.5.

    Pictures that take long are added up from single passes unless `full`. Everything is
    measured in turns and medians are told; memory is that of fresh processes, one a way.
    """
    subject = load_subject(spec, device)
    side = size or subject.spec.resolution
    parts = StageTimings(subject, side)
    whole = full or parts.one_plain_pass() * PLAIN_STEPS < TOO_LONG
    turns = turns or (TURNS_WHOLE if whole else TURNS_PARTS)
    seconds = parts.measure(turns)
    rows = _end_to_end(subject, side, turns) if whole else _added_up(subject, side, seconds)
    report = BenchmarkReport(
        model=subject.spec.key,
        size=side,
        machine=model_under_test.machine_name(device),
        cores=system_info.core_count(),
        device=device.name,
        dtype=device.dtype,
        rows=tuple(rows),
        added_up=not whole,
        turns=turns,
        ceiling_teraflops=model_under_test.peak_matmul_tflops(device),
        unet_teraflops=model_under_test.unet_tflop(subject, side) / seconds[FULL],
        # Of a long picture two steps tell: with more of them the share is smaller still.
        own_share=model_under_test.overhead_ratio(
            subject, side, None if whole else 2, turns if whole else 1
        ),
    )
    if not memory:
        return report
    del subject, parts
    system_info.release_memory()  # what follows measures other processes, which need the room
    return replace(report, rows=_with_memory(report.rows, spec, device, side))


def _requests(subject: BenchmarkModel, side: int) -> dict[str, GenerationRequest]:
    return {
        preset: GenerationRequest(
            PROMPT, seed=1, width=side, height=side, preset=preset, model_key=subject.spec.key
        ).with_defaults(subject.spec)
        for preset in PRESETS
    }


def _end_to_end(subject: BenchmarkModel, side: int, turns: int) -> list[Result]:
    ways: dict[str, tuple[int, Callable[[], Image]]] = {
        PLAIN: (PLAIN_STEPS, lambda: subject.make_plain(side, PLAIN_STEPS)),
        ORIGINAL_SCRIPT: (
            ORIGINAL_STEPS,
            lambda: subject.make_plain(side, ORIGINAL_STEPS, slicing=True),
        ),
    }
    for preset, request in _requests(subject, side).items():
        steps = request.num_inference_steps or 1
        ways[preset] = steps, lambda wish=request: subject.make_ours(wish)  # type: ignore[misc]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    images: dict[str, Image] = {}
    for turn in range(turns + 1):
        for name, (_, make) in ways.items():
            model_under_test.clear_cache(subject.ours)
            started = time.perf_counter()
            images[name] = make()
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - started)
    totals = {name: (steps, statistics.median(seconds[name])) for name, (steps, _) in ways.items()}
    return [
        replace(
            row,
            ssim=similarity.ssim(images["quality"], images[row.name]),
            psnr=similarity.psnr(images["quality"], images[row.name]),
        )
        if row.name in PRESETS
        else row
        for row in _rows(totals)
    ]


def _added_up(subject: BenchmarkModel, side: int, seconds: dict[str, float]) -> list[Result]:
    """Rows from the parts of a picture: words, passes of each kind, decoding."""
    needs: dict[str, tuple[int, dict[str, int]]] = {
        name: (steps, {"plain text": 2, one_pass: steps, "plain decode": 1})
        for name, steps, one_pass in (
            (PLAIN, PLAIN_STEPS, "plain pass"),
            (ORIGINAL_SCRIPT, ORIGINAL_STEPS, "sliced pass"),
        )
    }
    for preset, request in _requests(subject, side).items():
        steps = request.num_inference_steps or 1
        few = uses_distilled_lora(preset, subject.spec)
        # Weights for few steps need no unguided twin, as in a pass for the wanted picture.
        kinds = [COND_ONLY] * steps if few else cache_schedule(PRESETS[preset], steps)
        tiny = PRESETS[preset].tiny_decoder and subject.tiny_decoder is not None
        needs[preset] = (
            steps,
            {
                "text": 1 if few else 2,
                "tiny decode" if tiny else "decode": 1,
                **{kind: kinds.count(kind) for kind in (FULL, COND_ONLY, CACHED)},
            },
        )
    totals = {
        name: (steps, sum(seconds[part] * count for part, count in counts.items()))
        for name, (steps, counts) in needs.items()
    }
    return _rows(totals)


def _rows(totals: dict[str, tuple[int, float]]) -> list[Result]:
    """Rows of the steps and seconds by name."""
    base = totals[PLAIN][1]
    return [
        Result(name, steps, seconds, seconds / steps, base / seconds)
        for name, (steps, seconds) in totals.items()
    ]


def _with_memory(
    rows: tuple[Result, ...], spec: ModelSpec | None, device: Device, side: int
) -> tuple[Result, ...]:
    ways = {PLAIN: "plain", ORIGINAL_SCRIPT: "sliced"}
    peaks = {way: peak_memory(spec, device, side, way) for way in ("plain", "sliced", "ours")}
    return tuple(replace(row, peak_memory=peaks[ways.get(row.name, "ours")]) for row in rows)
