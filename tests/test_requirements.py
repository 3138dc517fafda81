"""Every package that is imported is required, with bounds and a reason in the README."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_structure import ROOT, imports_of, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ON_SPACES = {"spaces"}  # installed by Hugging Face
REQUIRED_BY = {"accelerate": "diffusers"}  # needed by another package, never imported here


def parse(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(one.name): one for one in requirements}


def required(name: str = "requirements.txt") -> dict[str, Requirement]:
    return parse((ROOT / name).read_text(encoding="utf-8").splitlines())


def optional() -> set[str]:
    return set(parse(PROJECT["optional-dependencies"]["upscale"]))


def imported() -> set[str]:
    """The distributions whose modules `canvas` imports."""
    names = {name.split(".")[0] for path in modules().values() for name in imports_of(path)}
    names -= {*sys.stdlib_module_names, "canvas", ""}
    known = packages_distributions()
    return {canonicalize_name(known[name][0]) if name in known else name for name in names}


def test_imported_packages_are_direct_requirements() -> None:
    assert imported() <= set(required()) | optional() | ON_SPACES


def test_required_packages_are_used() -> None:
    unused = set(required()) - imported()
    for name in unused - set(REQUIRED_BY):
        # A submodule such as gradio_client may be imported only through its parent's name.
        pytest.fail(f"{name} is required, but not imported")
    for name, user in REQUIRED_BY.items():
        assert name in parse([line.partition(";")[0] for line in requires(user) or ()])


def test_readme_gives_a_reason_for_each_package() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## Dependencies")[1].split("\n## ")[0]
    cells = re.findall(r"^\| ([^|]+) \| [^|]+\|$", section, re.MULTILINE)[1:]
    names = re.sub(r"\(.*?\)|\[.*?\]", "", ", ".join(cells)).split(",")
    explained = {canonicalize_name(name.strip()) for name in names if name.strip(" -")}
    assert explained == set(required()) | optional() | ON_SPACES


@pytest.mark.parametrize("name", ["requirements.txt", "tests/requirements.txt"])
def test_versions_have_bounds(name: str) -> None:
    for requirement in required(name).values():
        operators = {bound.operator for bound in requirement.specifier}
        assert operators in ({">=", "<"}, {"~="}), f"{requirement} needs both bounds"


def test_gradio_is_pinned_to_a_minor_version_in_all_files() -> None:
    """Private names of Gradio are used."""
    version = str(required()["gradio"].specifier)
    assert re.fullmatch(r"~=\d+\.\d+\.\d+", version)
    assert str(required("tests/requirements.txt")["gradio"].specifier) == version
    assert f"sdk_version: {version[2:]}" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_extra_upscale_is_tested() -> None:
    tested = required("tests/requirements.txt")
    for name, requirement in parse(PROJECT["optional-dependencies"]["upscale"]).items():
        assert tested[name].specifier == requirement.specifier
