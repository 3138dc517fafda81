"""The layers of the packages, sole importers of libraries, and the length of modules."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "canvas"
MAX_LINES = 600
# From the lowest to the highest layer; a package stands for all of its modules.
LAYERS = [
    {"errors", "files", "builtin_models"},
    {
        "validation",
        "platform",
        "settings",
        "formatting",
        "guidance",
        "styles",
        "schedulers",
        "catalog",
        "model_status",
        "presets",
        "image_formats",
        "request",
        "dynamic_prompts",
        "prompt_syntax",
        "vocabulary",
        "prompt_reading",
    },
    {"models", "history"},
    {"engine"},
    {"backends"},
    {"jobs"},
    {"studio"},
    {"comparison"},
    {"ui", "api"},
    {"server"},
    {"cli", "__main__"},
]
# Packages outside of the layers; only `canvas.cli.main` imports one of them, for its command `bench`.
APART = {"benchmark", "training"}
# The packages or modules that alone may import a library.
SOLE_IMPORTERS = {
    "huggingface_hub": ("models", "backends.inference_providers", "cli.deploy_space"),
    "diffusers": ("engine", "benchmark"),
    "torch": ("engine", "benchmark"),
    "transformers": ("engine", "benchmark"),
    "openvino": ("engine.openvino",),
    "nncf": ("engine.openvino.int8",),
    "sqlite3": ("history",),
    "gradio_client": ("backends", "api"),
    "gradio": ("ui", "api", "server", "backends.zerogpu"),  # ZeroGPU raises Gradio's errors
    "ray": ("backends.ray_cluster",),
    "spaces": ("backends.zerogpu",),
    "tomlkit": ("models.own_models",),
    "typer": ("cli", "benchmark.command"),
    "pydantic_settings": ("settings",),
}


def package_of(module: str) -> str:
    """`canvas.engine.device` → `engine`; the package itself → `canvas`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if package_of(name) != "training":
            found[name] = path
    return found


# Parsed at import: finalizers of other tests must not run inside ast.parse (gh-106905).
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


@functools.cache
def imports_of(path: Path) -> set[str]:
    """The imports of a module at run time, without those for annotations."""
    names = set()
    for node in runtime_nodes(TREES[path]):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module or "")
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def runtime_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from runtime_nodes(node)


def own_imports(module: str) -> set[str]:
    known = modules()
    return {name for name in imports_of(known[module]) if name in known} - {module, "canvas"}


def layer_of(module: str) -> int:
    for number, packages in enumerate(LAYERS):
        if package_of(module) in packages:
            return number
    raise AssertionError(f"{module} has no layer: add it to LAYERS")


MODULES = [name for name in modules() if name != "canvas"]
LAYERED = [name for name in MODULES if package_of(name) not in APART]


@pytest.mark.parametrize("module", LAYERED)
def test_imports_point_down(module: str) -> None:
    for imported in own_imports(module):
        if package_of(imported) in APART:
            assert module == "canvas.cli.main", f"{module} imports {imported}"
        else:
            assert layer_of(imported) <= layer_of(module), f"{module} imports {imported} from above"


def test_packages_of_a_layer_do_not_import_each_other() -> None:
    separate = [{"models", "history"}, {"ui", "api"}]
    for module in MODULES:
        for imported in own_imports(module):
            pair = {package_of(module), package_of(imported)}
            assert pair not in separate, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_front_ends_use_the_facade(module: str) -> None:
    if package_of(module) in ("ui", "api", "server"):
        tree = TREES[modules()[module]]
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not used & {"database", "image_repository"}, module


def test_engine_does_not_import_history() -> None:
    for module in MODULES:
        if package_of(module) == "engine":
            assert not [name for name in own_imports(module) if package_of(name) == "history"]


def test_there_are_no_cycles() -> None:
    graph = {module: own_imports(module) for module in MODULES}
    for module in MODULES:
        if graph[module] and modules()[module].name == "__init__.py":
            graph[module] = set()  # a package re-exports what is inside
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError


@pytest.mark.parametrize("module", MODULES)
def test_libraries_are_imported_in_one_place(module: str) -> None:
    for imported in imports_of(modules()[module]):
        allowed = SOLE_IMPORTERS.get(imported.split(".")[0])
        name = module.removeprefix("canvas.")
        assert allowed is None or any(f"{name}.".startswith(f"{each}.") for each in allowed), (
            f"{module} imports {imported}"
        )


@pytest.mark.parametrize("module", MODULES)
def test_only_settings_and_platform_read_the_environment(module: str) -> None:
    if package_of(module) in ("settings", "platform"):
        return
    tree = TREES[modules()[module]]
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not used & {"environ", "getenv"}, f"{module} reads the environment"


@pytest.mark.parametrize("module", MODULES)
def test_modules_are_at_most_600_lines_long(module: str) -> None:
    lines = len(modules()[module].read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{module} has {lines} lines; at most {MAX_LINES}"


def test_heavy_libraries_are_imported_on_first_use() -> None:
    code = (
        "import sys, canvas, canvas.studio, canvas.server.launch, canvas.ui.app; "
        "heavy = {'torch', 'diffusers', 'transformers', 'openvino', 'ray'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
