"""Train the built-in model: `python -m canvas.training STAGE …`."""

import argparse
import logging
import multiprocessing
import sys
import time
from dataclasses import replace
from pathlib import Path

from canvas.training.config import PRESETS
from canvas.training.stages import OLD_STAGES, STAGES, Options, configure_logging, load_sprites, rename_old_files

# Without preset-regression, which is not part of a training.
ALL = tuple(name for name in STAGES if name != "preset-regression")


def stage_name(name: str) -> str:
    """The stage's name, also for a former one."""
    return OLD_STAGES.get(name, name)


def parse_options(arguments: list[str]) -> Options:
    """Parse the command line; options that were renamed keep their former names as aliases."""
    parser = argparse.ArgumentParser(prog="python -m canvas.training", description=__doc__)
    add = parser.add_argument
    add("stages", nargs="+", type=stage_name, choices=(*STAGES, "all"), help="run in this order")
    add("--preset", choices=tuple(PRESETS), default="cpu")
    add("--work", type=Path, default=Path("training-work"), help="folder for all results")
    add("--packages", type=Path, help="folder with npm tarballs (default: WORK/packages)")
    add("--target", type=Path, default=Path("assets/starter"), help="folder of the exported model")
    add("--minutes", type=float, help="total minutes of each training stage")
    add("--deadline", "--until", type=float, help="Unix time by which all trainings must end")
    add("--stop-after", type=float, help="minutes after which to stop; run again to resume")
    add("--report-every", type=float, default=60, help="seconds")
    add("--workers", type=int, help="number of data-parallel processes")
    add(
        "--parallel-stages",
        "--beside",
        nargs="*",
        default=(),
        type=stage_name,
        choices=ALL,
        help="stages to run in separate processes meanwhile",
    )
    add("--no-cuda-graphs", "--plain-steps", action="store_true", help="use eager training steps")
    add("--num-inference-steps", "--steps", type=int, default=4, help="for sheet and evaluation")
    add("--guidance-scale", "--guidance", type=float, default=1.0, help="likewise")
    args = parser.parse_args(arguments)
    config = PRESETS[args.preset]
    if args.workers:
        config = replace(config, workers=args.workers)
    if args.no_cuda_graphs:
        config = replace(config, cuda_graphs=False)
    return Options(
        stages=ALL if "all" in args.stages else tuple(args.stages),
        config=config,
        preset=args.preset,
        work=args.work,
        packages=args.packages or args.work / "packages",
        target=args.target,
        minutes=args.minutes,
        stop_after=args.stop_after,
        deadline=time.monotonic() + args.deadline - time.time() if args.deadline else None,
        report_every=args.report_every,
        num_inference_steps=args.num_inference_steps,
        guidance_scale=args.guidance_scale,
        parallel_stages=tuple(args.parallel_stages),
    )


def run(options: Options) -> None:
    """Run the stages in order, and the parallel ones meanwhile."""
    options.work.mkdir(parents=True, exist_ok=True)
    rename_old_files(options.work)
    if options.parallel_stages:
        load_sprites(options.work)  # shared by all forked processes
    # Fork before this process initializes CUDA, which a forked child could not use afterwards.
    processes = [
        multiprocessing.get_context("fork").Process(target=STAGES[name], args=(options,))
        for name in options.parallel_stages
    ]
    for process in processes:
        process.start()
    for name in options.stages:
        logging.getLogger(__name__).info("stage %s", name)
        STAGES[name](options)
    for process in processes:
        process.join()


if __name__ == "__main__":
    configure_logging()
    run(parse_options(sys.argv[1:]))
