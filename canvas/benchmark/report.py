"""The figures of a benchmark as lines for a terminal and as a table for the README."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from canvas.errors import CanvasError

if TYPE_CHECKING:
    from canvas.benchmark.runner import BenchmarkReport, Result

BEGIN, END = "<!-- figures of `bench --write-readme` -->", "<!-- end of the figures -->"


def format_table(report: BenchmarkReport) -> list[str]:
    """The report as lines for people."""
    head = f"{report.model}, {report.size} × {report.size}, {report.device} {report.dtype}"
    lines = [
        f"{head} on {_machine(report)}; {_how(report)}",
        f"{'':22}{'steps':>6}{'seconds':>9}{'a step':>8}"
        f"{'ratio':>7}{'memory':>9}{'SSIM':>7}{'PSNR':>7}",
    ]
    for row in report.rows:
        memory, ssim, psnr = _extras(row)
        lines.append(
            f"{row.name:22}{row.steps:>6}{row.seconds:>9.2f}{row.seconds_per_step:>8.3f}"
            f"{row.ratio:>7.2f}{memory:>9}{ssim:>7}{psnr:>7}"
        )
    at_most = "at most " if report.added_up else ""
    return [
        *lines,
        f"Outside text encoder, UNet and decoder Quality spends {at_most}{report.own_share:.1%}.",
        f"The UNet reaches {report.unet_teraflops:.3g} of {report.ceiling_teraflops:.3g} TFLOPS, "
        f"{report.share_of_ceiling:.0%} of what matrix products reach here.",
    ]


def format_markdown(reports: Iterable[BenchmarkReport]) -> str:
    """The same as tables of Markdown, a paragraph before each."""
    parts = []
    for report in reports:
        lines = [
            f"`{report.model}`, {report.size} × {report.size}, {report.dtype}, on "
            f"{_machine(report)}; {_how(report)}:",
            "",
            "| | steps | seconds | times as fast | memory | SSIM to Quality |",
            "|---|---|---|---|---|---|",
        ]
        for row in report.rows:
            memory, ssim, _ = _extras(row)
            lines.append(
                f"| {row.name} | {row.steps} | {row.seconds:.2f} | {row.ratio:.2f} "
                f"| {memory} | {ssim} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def replace_marked_section(path: Path, text: str) -> None:
    """Replace what stands between the two marks of a file; raises CanvasError without them."""
    whole = path.read_text(encoding="utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise CanvasError(f"{path.name} lacks the lines {BEGIN} and {END}: put them back.")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def _machine(report: BenchmarkReport) -> str:
    cores = f" ({report.cores} cores)" if report.device == "cpu" else ""
    return report.machine + cores


def _how(report: BenchmarkReport) -> str:
    how = "added up from single passes" if report.added_up else "whole pictures"
    return f"{how}, medians of {report.turns}"


def _extras(row: Result) -> tuple[str, str, str]:
    """Memory, SSIM and PSNR, blank where they were not measured."""
    return (
        f"{row.peak_memory / 1e9:.2f} GB" if row.peak_memory else "",
        "" if row.ssim is None else f"{row.ssim:.3f}",
        "" if row.psnr is None else f"{row.psnr:.1f}",
    )
