"""The command `python -m canvas bench`."""

from __future__ import annotations

from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from canvas import validation
from canvas.cli.console import AsJson, load_settings, number_option, print_json, print_line, with_examples
from canvas.errors import InvalidInput

if TYPE_CHECKING:
    from canvas.benchmark.runner import BenchmarkReport
    from canvas.catalog import ModelSpec

README = Path(__file__).resolve().parent.parent.parent / "README.md"
SYNTHETIC = "sd15"
ENGINE_PARTS = ("passes", "one-step", "starter", "memory")
STARTUP_LABELS = {"page": "first page", "picture": "first image", "gradio_hello_world": "gradio hello world"}

app = typer.Typer()


@app.callback(invoke_without_command=True)
@with_examples(
    "python -m canvas bench --model starter",
    "python -m canvas bench --synthetic sd15 --size 512 --json",
    "python -m canvas bench startup --rounds 3",
)
def bench(  # noqa: PLR0913, PLR0917 - one parameter per option, as typer requires
    context: typer.Context,
    model: Annotated[
        list[str] | None, typer.Option(metavar="KEY", help="Downloaded model; can be given several times.")
    ] = None,
    synthetic: Annotated[
        str | None, typer.Option(metavar="sd15", help="Stable Diffusion 1.5 with random weights.")
    ] = None,
    size: Annotated[int | None, number_option("size", "width and height in pixels, a multiple of 8", int)] = None,
    full: Annotated[bool, typer.Option("--full", help="Generate whole images, however long it takes.")] = False,
    rounds: Annotated[int | None, number_option("rounds", "number of measurements", int)] = None,
    json: AsJson = False,
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Also write the tables into README.md.")] = False,
    compare_with: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Results of --json to add to README.md.")
    ] = None,
) -> None:
    """Compare the presets with plain diffusers, or measure the start with `bench startup`."""
    if context.invoked_subcommand is not None:
        return
    if synthetic not in (None, SYNTHETIC):
        raise InvalidInput("synthetic", synthetic, SYNTHETIC)
    for field, value, low, high in (("size", size, 64, 4096), ("rounds", rounds, 1, 1000)):
        if value is not None:
            validation.integer(field, value, low, high)
    if size is not None:
        validation.multiple_of_8("size", size)
    from canvas.benchmark.runner import format_markdown, format_table, replace_marked_section, run_benchmark
    from canvas.engine.device import detect_device
    from canvas.engine.openvino.runtime import is_installed

    others = [_read_report(path) for path in compare_with or ()]
    settings = load_settings(None)
    device = detect_device(settings.cache_dir, settings.device, settings.dtype)
    keys = model or ([] if synthetic else [settings.model])
    on_openvino = device.name == "cpu" and is_installed()
    reports = []
    for spec in [*map(_downloaded_model, keys), *([None] if synthetic else [])]:
        report = run_benchmark(spec, device, size=size, full=full, rounds=rounds, openvino=on_openvino)
        reports.append(report)
        if json:
            print_json(report.to_dict())
        else:
            print_line("\n".join(format_table(report)))
    if write_readme:
        replace_marked_section(README, f"\n\n{format_markdown([*reports, *others])}\n\n")


def _read_report(path: Path) -> BenchmarkReport:
    from canvas.benchmark.runner import BenchmarkReport

    try:
        return BenchmarkReport.from_dict(loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput("compare_with", str(path), "a file that --json wrote") from error


def _downloaded_model(key: str) -> ModelSpec:
    from canvas.catalog import get_model
    from canvas.models.download import find_local

    spec = get_model(key)
    if find_local(spec) is None:
        message = f"The model {key} is not downloaded. Run `python -m canvas download {key}`."
        raise InvalidInput("model", key, message=message)
    return spec


@app.command()
@with_examples("python -m canvas bench engines", "python -m canvas bench engines --part starter --part passes")
def engines(
    part: Annotated[list[str] | None, typer.Option(metavar="|".join(ENGINE_PARTS), help="Default: all.")] = None,
    rounds: Annotated[int, number_option("rounds", "number of measurements", int)] = 5,
    json: AsJson = False,
    write_readme: Annotated[bool, typer.Option("--write-readme", help="Also write the passes into README.md.")] = False,
) -> None:
    """Compare plain diffusers, PyTorch, OpenVINO and int8 on a CPU; needs 16 GB of memory."""
    validation.integer("rounds", rounds, 1, 1000)
    for name in part or ():
        validation.choice("part", name, ENGINE_PARTS)
    if write_readme and part and "passes" not in part:
        raise InvalidInput("part", ", ".join(part), "passes, if README.md is to be written")
    from canvas.benchmark.engines import README_BEGIN, README_END, cpu_name, format_engines, measure_engines
    from canvas.benchmark.runner import replace_marked_section

    measurements = []
    for each in measure_engines(tuple(part or ENGINE_PARTS), load_settings(None).cache_dir, rounds):
        measurements.append(each)
        if not json:
            bound = (
                f"at least {each.at_least:g}" if each.at_least else f"at most {each.at_most:g}" if each.at_most else ""
            )
            met = {True: "yes", False: "NO", None: ""}[each.is_met]
            print_line(f"{each.name:62}{each.value:9.3f} {each.unit:3} {bound:14} {met}")
    if json:
        print_json([each.to_dict() for each in measurements])
    if write_readme and (text := format_engines(measurements, cpu_name())):
        replace_marked_section(README, text, README_BEGIN, README_END)


@app.command()
@with_examples("python -m canvas bench startup --rounds 3")
def startup(
    rounds: Annotated[int, number_option("rounds", "number of measurements", int)] = 5, json: AsJson = False
) -> None:
    """Seconds to the first page, compared with a Gradio "Hello world", and to the first image."""
    validation.integer("rounds", rounds, 1, 1000)
    from canvas.benchmark.startup import measure_startup

    results = measure_startup(rounds)
    if json:
        print_json(results)
        return
    for name, label in STARTUP_LABELS.items():
        values = ", ".join(f"{value:.2f}" for value in results["seconds"][name])
        median = results["medians"][name]
        print_line(f"{label:20}{median:6.2f} s  (median of {rounds}: {values})")
    print_line(f"{'page to hello world':20}{results['ratio']:6.2f}")
