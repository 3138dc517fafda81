"""Train the built-in model: `python -m canvas.training STAGE …`."""

import argparse
import logging
import sys
from pathlib import Path

from canvas.training.config import PRESETS
from canvas.training.stages import STAGES, Options


def parse_options(arguments: list[str]) -> Options:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m canvas.training", description=__doc__)
    add = parser.add_argument
    add("stages", nargs="+", choices=(*STAGES, "all"), help="run in this order")
    add("--preset", choices=tuple(PRESETS), default="cpu")
    add("--work", type=Path, default=Path("training-work"), help="folder for all results")
    add("--packages", type=Path, help="folder with npm tarballs (default: WORK/packages)")
    add("--target", type=Path, default=Path("assets/starter"), help="folder of the exported model")
    add("--minutes", type=float, help="total minutes of each training stage")
    add("--stop-after", type=float, help="minutes after which to stop; run again to resume")
    args = parser.parse_args(arguments)
    return Options(
        stages=tuple(STAGES) if "all" in args.stages else tuple(args.stages),
        config=PRESETS[args.preset],
        preset=args.preset,
        work=args.work,
        packages=args.packages or args.work / "packages",
        target=args.target,
        minutes=args.minutes,
        stop_after=args.stop_after,
    )


def run(options: Options) -> None:
    """Run the stages in order."""
    options.work.mkdir(parents=True, exist_ok=True)
    for name in options.stages:
        logging.getLogger(__name__).info("stage %s", name)
        STAGES[name](options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run(parse_options(sys.argv[1:]))
