"""The command line of the recipe: `python -m canvas.training STAGE …`."""

import argparse
import logging
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path

from canvas.training.presets import PRESETS
from canvas.training.stages import STAGES, Options, load_sprites, start_log

ALL = tuple(name for name in STAGES if name != "modes")  # which is asked for by name only


def parse_options(arguments: list[str]) -> Options:
    """The stages and how they are to run."""
    parser = argparse.ArgumentParser(prog="python -m canvas.training", description=__doc__)
    parser.add_argument("stages", nargs="+", choices=(*STAGES, "all"))
    parser.add_argument("--preset", choices=tuple(PRESETS), default="cpu")
    parser.add_argument("--work", type=Path, default=Path("training-work"))
    parser.add_argument("--packages", type=Path, help="folder of npm tarballs (WORK/packages)")
    parser.add_argument("--target", type=Path, default=Path("assets/starter"))
    parser.add_argument("--minutes", type=float, help="whole training of each stage")
    parser.add_argument("--until", type=float, help="when trainings are done, as `date +%%s`")
    parser.add_argument("--stop-after", type=float, help="minutes after which to stop and resume")
    parser.add_argument("--report-every", type=float, default=60, help="seconds")
    parser.add_argument("--workers", type=int, help="processes that train together")
    parser.add_argument(
        "--beside", nargs="*", default=(), choices=ALL, help="stages to run meanwhile"
    )
    parser.add_argument("--plain-steps", action="store_true", help="no CUDA graphs")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--guidance", type=float, default=1.0)
    told = parser.parse_args(arguments)
    preset = PRESETS[told.preset]
    if told.workers:
        preset = replace(preset, workers=told.workers)
    if told.plain_steps:
        preset = replace(preset, graphs=False)
    return Options(
        ALL if "all" in told.stages else tuple(told.stages),
        preset,
        told.preset,
        told.work,
        told.packages or told.work / "packages",
        told.target,
        told.minutes,
        told.stop_after,
        time.monotonic() + told.until - time.time() if told.until else None,
        told.report_every,
        told.steps,
        told.guidance,
        tuple(told.beside),
    )


def run(options: Options) -> None:
    """The stages that are asked for, one after the other."""
    options.work.mkdir(parents=True, exist_ok=True)
    if options.beside:
        load_sprites(options.work)  # for all processes
    # Forked before this process touches a GPU, which a child could not use after that.
    meanwhile = [
        multiprocessing.get_context("fork").Process(target=STAGES[name], args=(options,))
        for name in options.beside
    ]
    for process in meanwhile:
        process.start()
    for name in options.stages:
        logging.getLogger(__name__).info("stage %s", name)
        STAGES[name](options)
    for process in meanwhile:
        process.join()


if __name__ == "__main__":
    start_log()
    run(parse_options(sys.argv[1:]))
