"""Formats benchmark results as a table for the terminal and as Markdown for the README."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from canvas.errors import CanvasError
from canvas.files import atomic_write

if TYPE_CHECKING:
    from canvas.benchmark.engines import Measurement
    from canvas.benchmark.runner import BenchmarkReport, Result

BEGIN, END = "<!-- figures of `bench --write-readme` -->", "<!-- end of the figures -->"
ENGINES_BEGIN, ENGINES_END = "<!-- `bench engines --write-readme` -->", "<!-- end -->"
# The beginnings of the names of measurements.
GUIDED_PASS, SIMILARITY = "guided pass: ", "similarity of the prediction: "


def format_table(report: BenchmarkReport) -> list[str]:
    """The lines for the terminal."""
    head = f"{report.model}, {report.size} × {report.size}, {report.device} {report.dtype}"
    lines = [
        f"{head} on {_machine(report)}; {_method(report)}",
        f"{'':22}{'steps':>6}{'seconds':>9}{'a step':>8}{'ratio':>7}{'memory':>9}{'SSIM':>7}{'PSNR':>7}",
    ]
    for row in report.rows:
        memory, ssim, psnr = _optional_columns(row)
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


def format_engines(measurements: Sequence[Measurement], machine: str) -> str:
    """A sentence with the seconds of a guided pass by each engine, and its similarity; "" if not measured."""
    similarities = {
        each.name.removeprefix(SIMILARITY): f"{each.value:.0f} dB"
        for each in measurements
        if each.name.startswith(SIMILARITY)
    }
    passes = []
    for each in measurements:
        if each.name.startswith(GUIDED_PASS):
            name = each.name.removeprefix(GUIDED_PASS)
            similarity = f" ({similarities[name]})" if name in similarities else ""
            passes.append(f"{name} {each.value:.2f} s{similarity}")
    if not passes:
        return ""
    return (
        "One step of Stable Diffusion 1.5's UNet with guidance at 512 × 512, random weights, on "
        f"{machine}, and the similarity of the prediction to plain diffusers: {'; '.join(passes)}."
    )


def replace_marked_section(path: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
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


def _optional_columns(row: Result) -> tuple[str, str, str]:
    """Memory, SSIM and PSNR, empty if they were not measured."""
    return (
        f"{row.peak_memory / 1e9:.2f} GB" if row.peak_memory else "",
        "" if row.ssim is None else f"{row.ssim:.3f}",
        "" if row.psnr is None else f"{row.psnr:.1f}",
    )
