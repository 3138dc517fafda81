"""Compares the presets with plain diffusers on this machine, and formats the results."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvas.benchmark import model_under_test, similarity
from canvas.benchmark.memory import peak_memory
from canvas.benchmark.model_under_test import PROMPT, BenchmarkModel, StageTimings, load_benchmark_model, load_openvino
from canvas.engine import system_info
from canvas.engine.device import Device
from canvas.engine.optimizations.deepcache import CACHED, COND_ONLY, FULL, cache_schedule
from canvas.errors import CanvasError
from canvas.files import atomic_write
from canvas.presets import PRESETS, uses_distilled_lora
from canvas.request import GenerationRequest

if TYPE_CHECKING:
    from PIL.Image import Image

    from canvas.catalog import ModelSpec

README_BEGIN, README_END = "<!-- figures of `bench --write-readme` -->", "<!-- end of the figures -->"
BASELINE, SLICED = "plain diffusers", "attention slicing"
BASELINE_STEPS, SLICED_STEPS = 25, 20
# Images that take the baseline longer are extrapolated from their stages.
MAX_SECONDS = 60.0
ROUNDS, EXTRAPOLATED_ROUNDS = 5, 3
# Field names of JSON reports of version 0.1; still read and written.
OLD_FIELD_NAMES = {
    "added_up": "extrapolated",
    "turns": "rounds",
    "ceiling_teraflops": "peak_tflops",
    "unet_teraflops": "unet_tflops",
    "own_share": "overhead_ratio",
    "share_of_ceiling": "peak_ratio",
}


@dataclass(frozen=True)
class Result:
    """One row: a way to generate the image; `ssim` and `psnr` compare with Quality's image."""

    name: str
    steps: int
    seconds: float
    seconds_per_step: float
    ratio: float  # times as fast as plain diffusers
    peak_memory: int | None = None  # bytes
    ssim: float | None = None
    psnr: float | None = None  # dB


@dataclass(frozen=True)
class BenchmarkReport:
    """The results and the machine; `extrapolated` means from single stages."""

    model: str
    size: int
    machine: str
    cores: int
    device: str
    dtype: str
    rows: tuple[Result, ...]
    extrapolated: bool
    rounds: int
    peak_tflops: float  # of matrix products
    unet_tflops: float
    overhead_ratio: float  # of Quality, outside text encoder, UNet and VAE

    @property
    def peak_ratio(self) -> float:
        """The UNet's speed relative to that of matrix products, 0 to 1."""
        return self.unet_tflops / self.peak_tflops

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        values = {**asdict(self), "peak_ratio": self.peak_ratio}
        return values | {old: values[new] for old, new in OLD_FIELD_NAMES.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BenchmarkReport:
        """The report of `to_dict`, also of older versions."""
        fields = {OLD_FIELD_NAMES.get(name, name): value for name, value in values.items()}
        del fields["peak_ratio"]
        return cls(**{**fields, "rows": tuple(Result(**row) for row in values["rows"])})


def run_benchmark(
    spec: ModelSpec | None,
    device: Device,
    *,
    size: int | None = None,
    full: bool = False,
    rounds: int | None = None,
    memory: bool = True,
    openvino: bool = False,
) -> BenchmarkReport:
    """Benchmark a downloaded model, or the synthetic Stable Diffusion 1.5 if `spec` is None.

    Results are medians of alternating rounds. Images that take long are extrapolated, unless
    `full`. Memory is measured in a new process for each variant. With `openvino` there are rows
    for that engine, too.
    """
    model = load_benchmark_model(spec, device)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache_dir:
        if openvino:
            load_openvino(model, Path(cache_dir))
        report = _measure(model, size or model.spec.resolution, full=full, rounds=rounds)
    del model
    system_info.release_memory()  # for the processes that follow
    return replace(report, rows=_with_memory(report.rows, spec, device, report.size)) if memory else report


def _measure(model: BenchmarkModel, side: int, *, full: bool, rounds: int | None) -> BenchmarkReport:
    device = model.device
    stages = StageTimings(model, side)
    end_to_end = full or stages.baseline_unet_call() * BASELINE_STEPS < MAX_SECONDS
    rounds = rounds or (ROUNDS if end_to_end else EXTRAPOLATED_ROUNDS)
    seconds = stages.measure(rounds)
    rows = _end_to_end(model, side, rounds) if end_to_end else _extrapolate(model, side, seconds)
    return BenchmarkReport(
        model=model.spec.key,
        size=side,
        machine=model_under_test.machine_name(device),
        cores=system_info.core_count(),
        device=device.name,
        dtype=device.dtype,
        rows=tuple(rows),
        extrapolated=not end_to_end,
        rounds=rounds,
        peak_tflops=model_under_test.peak_matmul_tflops(device),
        unet_tflops=model_under_test.unet_tflop(model, side) / seconds[FULL],
        # Two steps of a long image give an upper limit: the ratio falls with more.
        overhead_ratio=model_under_test.overhead_ratio(
            model, side, None if end_to_end else 2, rounds if end_to_end else 1
        ),
    )


def _requests(model: BenchmarkModel, side: int) -> dict[str, GenerationRequest]:
    return {
        preset: GenerationRequest(
            PROMPT, seed=1, width=side, height=side, preset=preset, model_key=model.spec.key
        ).with_defaults(model.spec)
        for preset in PRESETS
    }


def _end_to_end(model: BenchmarkModel, side: int, rounds: int) -> list[Result]:
    variants: dict[str, tuple[int, Callable[[], Image]]] = {
        BASELINE: (BASELINE_STEPS, partial(model.generate_baseline, side, BASELINE_STEPS)),
        SLICED: (SLICED_STEPS, partial(model.generate_baseline, side, SLICED_STEPS, slicing=True)),
    }
    for preset, request in _requests(model, side).items():
        steps = request.num_inference_steps or 1
        variants[preset] = (steps, partial(model.generate_optimized, request))
        if model.openvino is not None:
            variants[f"{preset}, OpenVINO"] = (steps, partial(model.generate_optimized, request, openvino=True))
    images: dict[str, Image] = {}

    def run(name: str, generate: Callable[[], Image]) -> None:
        for pipeline in filter(None, (model.optimized, model.openvino)):
            model_under_test.clear_cache(pipeline)
        images[name] = generate()

    runs = {name: partial(run, name, generate) for name, (_, generate) in variants.items()}
    medians = model_under_test.median_seconds(runs, rounds)
    rows = _results({name: (steps, medians[name]) for name, (steps, _) in variants.items()})
    for number, row in enumerate(rows):
        if row.name.split(", ")[0] in PRESETS:
            pair = images["quality"], images[row.name]
            rows[number] = replace(row, ssim=similarity.ssim(*pair), psnr=similarity.psnr(*pair))
    return rows


def _extrapolate(model: BenchmarkModel, side: int, seconds: dict[str, float]) -> list[Result]:
    """Add up the stages: text encoding, UNet calls of each kind, decoding."""
    stages: dict[str, tuple[int, dict[str, int]]] = {
        name: (steps, {"baseline text": 2, unet: steps, "baseline decode": 1})
        for name, steps, unet in ((BASELINE, BASELINE_STEPS, "baseline unet"), (SLICED, SLICED_STEPS, "sliced unet"))
    }
    for preset, request in _requests(model, side).items():
        steps = request.num_inference_steps or 1
        distilled = uses_distilled_lora(preset, model.spec)
        # Distilled weights need no unconditional branch.
        schedule = [COND_ONLY] * steps if distilled else cache_schedule(PRESETS[preset], steps)
        tiny = PRESETS[preset].tiny_decoder and model.tiny_vae is not None
        for engine in ("", "openvino ") if model.openvino is not None else ("",):
            stages[f"{preset}, OpenVINO" if engine else preset] = (
                steps,
                {
                    "text": 1 if distilled else 2,
                    "tiny decode" if tiny else f"{engine}decode": 1,
                    **{f"{engine}{kind}": schedule.count(kind) for kind in (FULL, COND_ONLY, CACHED)},
                },
            )
    return _results(
        {
            name: (steps, sum(seconds[stage] * count for stage, count in counts.items()))
            for name, (steps, counts) in stages.items()
        }
    )


def _results(totals: dict[str, tuple[int, float]]) -> list[Result]:
    """Results from steps and seconds by name."""
    baseline = totals[BASELINE][1]
    return [
        Result(name, steps, seconds, seconds / steps, baseline / seconds) for name, (steps, seconds) in totals.items()
    ]


def _with_memory(rows: tuple[Result, ...], spec: ModelSpec | None, device: Device, side: int) -> tuple[Result, ...]:
    variants = {BASELINE: "baseline", SLICED: "sliced"}
    peaks = {variant: peak_memory(spec, device, side, variant) for variant in (*variants.values(), "optimized")}
    return tuple(replace(row, peak_memory=peaks[variants.get(row.name, "optimized")]) for row in rows)


def format_table(report: BenchmarkReport) -> list[str]:
    """The lines for the terminal."""
    head = f"{report.model}, {report.size} × {report.size}, {report.device} {report.dtype}"
    lines = [
        f"{head} on {_machine(report)}; {_method(report)}",
        f"{'':22}{'steps':>6}{'seconds':>9}{'a step':>8}{'ratio':>7}{'memory':>9}{'SSIM':>7}{'PSNR':>7}",
    ]
    for row in report.rows:
        memory = f"{row.peak_memory / 1e9:.2f} GB" if row.peak_memory else ""
        ssim = "" if row.ssim is None else f"{row.ssim:.3f}"
        psnr = "" if row.psnr is None else f"{row.psnr:.1f}"
        lines.append(
            f"{row.name:22}{row.steps:>6}{row.seconds:>9.2f}{row.seconds_per_step:>8.3f}"
            f"{row.ratio:>7.2f}{memory:>9}{ssim:>7}{psnr:>7}"
        )
    at_most = "at most " if report.extrapolated else ""
    return [
        *lines,
        f"Overhead of Quality outside text encoder, UNet and VAE: {at_most}{report.overhead_ratio:.1%}.",
        f"UNet: {report.unet_tflops:.3g} of {report.peak_tflops:.3g} TFLOPS, "
        f"{report.peak_ratio:.0%} of the speed of matrix products.",
    ]


def format_markdown(reports: Sequence[BenchmarkReport]) -> str:
    """A Markdown table with a row per report and a column per preset: seconds and speed-up."""
    names = list(dict.fromkeys(row.name for report in reports for row in report.rows))
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for report in reports:
        cells = {row.name: f"{row.seconds:.2f} s ({row.ratio:.1f}×)" for row in report.rows}
        lines.append(
            f"| `{report.model}`, {report.size} × {report.size}, {report.dtype}, "
            f"{_machine(report)}; {_method(report)} | "
            f"{' | '.join(cells.get(name, '') for name in names)} |"
        )
    return "\n".join(lines)


def replace_marked_section(path: Path, text: str, begin: str = README_BEGIN, end: str = README_END) -> None:
    """Replace the text between two marks in a file; raises CanvasError without them."""
    content = path.read_text(encoding="utf-8")
    before, found_begin, rest = content.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found_begin and found_end):
        raise CanvasError(f"{path.name} must contain {begin} and {end}.")
    with atomic_write(path) as file:
        file.write(f"{before}{begin}{text}{end}{after}".encode())


def _machine(report: BenchmarkReport) -> str:
    cores = f" ({report.cores} cores)" if report.device == "cpu" else ""
    return report.machine + cores


def _method(report: BenchmarkReport) -> str:
    method = "extrapolated from single UNet calls" if report.extrapolated else "whole images"
    return f"{method}, medians of {report.rounds}"
