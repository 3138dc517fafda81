"""Whether the nearest tests notice small faults: `python -m tests.mutation_check [--seed N] [--count 40]`.

Each mutation changes one expression or statement of a copy of the repository, and the test files
nearest to the module run there. A mutation that they pass is a missing test, or changes nothing
that anyone can see.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.test_structure import APART, PACKAGE, ROOT

# Mutations that have survived before.
ALWAYS = {
    ("canvas/dynamic_prompts.py", "5", "6"),
    (
        "canvas/presets.py",
        "spec.num_inference_steps <= DISTILLED_MAX_STEPS",
        "spec.num_inference_steps < DISTILLED_MAX_STEPS",
    ),
}
STAGES = ("not slow and not long", "slow and not long and not browser", "slow and browser and not long")
LAST_STAGE_FILES = 1  # the slow tests of a browser take minutes
LONG_ONLY = {"ray_cluster.py"}  # all their tests are of `pytest -m long`
MAX_TEST_FILES = 4
TIME_LIMIT = 900  # seconds for the test files of a mutation; pytest ends single tests before
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult}
# What no test can or should notice: layout, waiting times, checks of the types, quality of JPEGs, logs.
KEYWORDS = {
    "timeout", "stacklevel", "strict", "repr", "frozen", "slots", "kw_only", "scale", "min_width", "lines",
    "max_lines", "container", "show_label", "height", "quality",
    "verbose",
}  # fmt: skip
TIMES = re.compile("TIMEOUT|SECONDS|INTERVAL")
FAILURE = re.compile(r"(?:FAILED|ERROR) (.*?)(?: - .*)?$")
LOGGERS = {"log", "logger", "logging", "warnings"}


@dataclass(frozen=True)
class Mutation:
    """A piece of a file, by line and byte, and what replaces it."""

    path: Path
    function: str  # the innermost that holds it, "" outside of functions
    kind: str
    start: tuple[int, int]
    end: tuple[int, int]
    before: str
    after: str

    @property
    def name(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    def __str__(self) -> str:
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.name}:{self.start[0]}: {before[:90]} → {after[:90]}"

    def apply(self, source: bytes) -> bytes:
        lines = source.splitlines(keepends=True)
        offsets = [sum(map(len, lines[: line - 1])) + column for line, column in (self.start, self.end)]
        after = self.after if self.kind == "statement" else f"({self.after})"
        return source[: offsets[0]] + after.encode() + source[offsets[1] :]


def code_nodes(node: ast.AST, function: str = "") -> Iterator[tuple[str, ast.AST]]:
    """The nodes below in order, with the innermost function, without what `is_ignored` and annotations."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        function = node.name
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "type_comment"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not is_ignored(child):
                yield function, child
                yield from code_nodes(child, function)


def is_ignored(node: ast.AST) -> bool:
    """Log calls, f-strings and what KEYWORDS and TIMES name."""
    match node:
        case ast.JoinedStr():  # before Python 3.12 its parts have no positions
            return True
        case ast.keyword(arg=name):
            return name in KEYWORDS
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return bool(TIMES.search(name))
        case ast.Call(func=ast.Attribute(value=ast.Name(id=name))):
            return name in LOGGERS
        case ast.If(test=ast.Name(id="TYPE_CHECKING")):
            return True
    return False


def replacements(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The kinds of mutations of a node and what they put in its place."""
    match node:
        case ast.Compare(left=left, ops=[op, *ops], comparators=comparators) if type(op) in COMPARISONS:
            yield "comparison", ast.Compare(left, [COMPARISONS[type(op)](), *ops], comparators)
        case ast.BoolOp(op=op, values=values):
            yield "and/or", ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "not", operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC and not is_text(left, right):
            yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(op)](), right)
        case ast.Constant(value=bool() as value):
            yield "boolean", ast.Constant(not value)
        case ast.Constant(value=int() as value):
            yield "integer", ast.Constant(value + 1)
            yield "integer", ast.Constant(value - 1)
        case ast.If(body=[*_, ast.Raise() | ast.Return()]) | ast.ExceptHandler(body=[*_, ast.Raise()]):
            yield "statement", ast.Pass()


def is_text(*nodes: ast.expr) -> bool:
    return any(isinstance(node, ast.JoinedStr | ast.List | ast.Tuple | ast.Set) for node in nodes) or any(
        isinstance(node, ast.Constant) and isinstance(node.value, str) for node in nodes
    )


def mutations_of(path: Path) -> list[Mutation]:
    source = path.read_text(encoding="utf-8")
    found = []
    for function, node in code_nodes(ast.parse(source)):
        for kind, new in replacements(node):
            old = node.body[-1] if kind == "statement" else node
            start, end = (old.lineno, old.col_offset), (old.end_lineno, old.end_col_offset)
            before, after = ast.get_source_segment(source, old), ast.unparse(new)
            found.append(Mutation(path, function, kind, start, end, before, after))
    return found


def choose(count: int, seed: int) -> list[Mutation]:
    """The mutations in ALWAYS, then one of each package in turn, of each kind alike."""
    packages = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0] not in APART and path.name not in LONG_ONLY:
            packages[path.parent] += mutations_of(path)
    everywhere = [each for found in packages.values() for each in found]
    chosen = [each for each in everywhere if (each.name, each.before, each.after) in ALWAYS]
    assert len(chosen) == len(ALWAYS), "change ALWAYS as the code changes"
    dice = random.Random(seed)
    while len(chosen) < count:
        for package in dice.sample(list(packages), len(packages)):
            kinds = defaultdict(list)
            for each in packages[package]:
                kinds[each.kind].append(each)
            chosen.append(dice.choice(kinds[dice.choice(list(kinds))]))
            packages[package].remove(chosen[-1])
    return chosen[:count]


def nearest_tests(path: Path, function: str) -> list[str]:
    """The test files of that name, those that import the module or name it, and one that calls the function."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    importing = re.compile(rf"{'.'.join(parts)}\b|from {'.'.join(parts[:-1])} import .*\b{parts[-1]}\b")
    users = {f"test_{each.stem}" for each in PACKAGE.rglob("*.py") if importing.search(each.read_text("utf-8"))}
    defined = [node.name for node in ast.parse(path.read_text("utf-8")).body if hasattr(node, "name")]
    words = re.compile(rf"\b({'|'.join([path.stem, *defined])})\b")
    topic = path.stem.split("_")[0]
    ranks, mentions, called = {}, {}, function.strip("_")
    for test in sorted((ROOT / "tests").rglob("test_*.py")):
        text = test.read_text("utf-8")
        same, near = test.stem == f"test_{path.stem}", test.parent == ROOT.joinpath("tests", *parts[1:-1][:1])
        named = len(set(words.findall(text)))
        rank = (same and near, bool(importing.search(text)), near and test.stem in users, same, near * named)
        name = test.relative_to(ROOT).as_posix()
        ranks[name] = (*rank, near * text.lower().count(topic))
        # Also test_generate_via_server.py for _generate_via_server
        mentions[name] = len(re.findall(rf"(?:\b|test_){called}\b", f"{test.stem} {text}")) if len(called) > 5 else 0
    found = [name for name, rank in ranks.items() if any(rank[:-1])] or [name for name in ranks if ranks[name][-1]]
    found = sorted(found, key=lambda name: ranks[name], reverse=True)[:MAX_TEST_FILES]
    caller = max(mentions, key=lambda name: (mentions[name], name in found))
    return found if not mentions[caller] or caller in found else [*found, caller]


def failing_test(folder: Path, tests: list[str], with_browser: bool) -> str:
    """The first test that fails in this copy of the repository, the fast ones first; "" if all pass."""
    stages = STAGES[:2] if with_browser else [f"{STAGES[0]} and not browser", STAGES[1]]
    found = next(filter(None, (failing_test_of(folder, tests, marks) for marks in stages)), "")
    return found or (failing_test_of(folder, tests[:LAST_STAGE_FILES], STAGES[2]) if with_browser else "")


def failing_test_of(folder: Path, tests: list[str], marks: str) -> str:
    command = [sys.executable, "-m", "pytest", "-x", "-n", "0", "--tb", "no", "-rfE", "-m", marks]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen([*command, *tests], cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        timer = threading.Timer(TIME_LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        timer.start()
        try:
            for line in process.stdout:
                if found := FAILURE.match(line):
                    return found[1]
            return "" if process.wait() in (0, 5) else f"exit code {process.returncode}"  # 5: all deselected
        finally:
            timer.cancel()
            if process.poll() is None:  # threads that do not end after a failure
                os.killpg(process.pid, signal.SIGKILL)


def outcome(mutation: Mutation, folder: Path) -> str:
    """`killed by …` or `SURVIVED …`; the copy is restored afterwards."""
    copy = folder / mutation.name
    original = copy.read_bytes()
    tests = nearest_tests(mutation.path, mutation.function)
    with_browser = mutation.path.parent.name == "ui"
    try:
        write(copy, mutation.apply(original))
        killer = failing_test(folder, tests, with_browser)
    finally:
        write(copy, original)
    if not killer:
        return f"SURVIVED {' '.join(tests)}"
    if failing_test(folder, [killer] if "::" in killer else tests, with_browser):
        return f"SURVIVED: {killer} fails without it, too"
    return f"killed by {killer}"


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    for compiled in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
        compiled.unlink()  # its time and size may be those of the mutation


def main() -> None:
    """Write a line for each mutation, and how many were killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args()
    killed = 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "repository"
        ignored = shutil.ignore_patterns(".venv", "venv", "__pycache__", ".*_cache", "outputs", "*.db*")
        shutil.copytree(ROOT, folder, ignore=ignored)
        for mutation in choose(options.count, options.seed):
            result = outcome(mutation, folder)
            killed += result.startswith("killed")
            sys.stdout.write(f"{mutation}: {result}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{killed} of {options.count} killed\n")


if __name__ == "__main__":
    main()
