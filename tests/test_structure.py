"""Holds the house together: floors, wings, sole owners, no circles, sizes."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "canvas"
MAX_LINES = 300
FLOORS = [
    {"errors"},
    {
        "validation",
        "places",
        "settings",
        "styles",
        "schedulers",
        "catalog",
        "modes",
        "where",
        "tasks",
        "request",
        "combinations",
    },
    {
        "engine",
        "history",
        "jobs",
        "models",
        "identity",
        "doors",
        "login",
        "limits",
        "links",
        "telling",
        "notebook",
    },
    {"materials", "drawing", "painting", "supplies", "workshop", "expectations"},
    {"studio"},
    {"comparing"},
    {"ui", "api"},
    {"serve"},
    {"cli", "__main__"},
]
# Which library only which rooms may import.
SOLE_OWNERS = {
    "huggingface_hub": ("engine",),
    "diffusers": ("engine",),
    "torch": ("engine",),
    "transformers": ("engine",),
    "sqlite3": ("history",),
    "gradio_client": ("engine", "api"),
    "gradio": ("ui", "api", "serve", "painting"),  # painting: ZeroGPU refuses in Gradio's words
    "spaces": ("painting",),
}


def room_of(module: str) -> str:
    """`canvas.engine.device` → `engine`; the package itself → `canvas`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if room_of(name) != "training":
            found[name] = path
    return found


# Read at import: what tests leave open must not be finalized inside ast.parse (gh-106905).
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))
}


def imports_of(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(module: str) -> set[str]:
    known = modules()
    return {name for name in imports_of(known[module]) if name in known} - {module, "canvas"}


def floor_of(module: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if room_of(module) in rooms:
            return number
    raise AssertionError(f"{module} has no floor: give it one in FLOORS")


MODULES = [name for name in modules() if name != "canvas"]


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    for imported in own_imports(module):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} from above"
        assert room_of(imported) != "training"


def test_wings_and_front_ends_stay_apart() -> None:
    apart = {("engine", "history"), ("history", "engine"), ("ui", "api"), ("api", "ui")}
    for module in MODULES:
        for imported in own_imports(module):
            assert (room_of(module), room_of(imported)) not in apart, f"{module} → {imported}"


def test_no_circles() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    for module in MODULES:
        if graph[module] and modules()[module].name == "__init__.py":
            graph[module] = set()  # a room's front door re-exports what is inside
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_libraries_have_one_owner(module: str) -> None:
    for imported in imports_of(modules()[module]):
        owners = SOLE_OWNERS.get(imported.split(".")[0])
        assert owners is None or room_of(module) in owners, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_only_settings_reads_the_environment(module: str) -> None:
    if room_of(module) == "settings":
        return
    tree = TREES[modules()[module]]
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"environ", "getenv"}, f"{module} reads the environment"


@pytest.mark.parametrize("module", MODULES)
def test_modules_stay_small(module: str) -> None:
    lines = len(modules()[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines: find it another noun"


@pytest.mark.parametrize("module", ["canvas", "canvas.studio", "canvas.ui.page", "canvas.serve"])
def test_heavy_libraries_wait_for_their_use(module: str) -> None:
    code = (
        f"import sys, {module}; "
        "heavy = {'torch', 'diffusers', 'transformers'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
