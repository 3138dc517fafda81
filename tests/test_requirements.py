"""Every package that is imported is required, with bounds and a reason in the README."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.test_structure import ROOT, imports_of, modules

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ON_SPACES = {"spaces"}  # installed by Hugging Face
# Needed by another package, never imported here
REQUIRED_BY = {"accelerate": "diffusers", "protobuf": "transformers", "sentencepiece": "transformers"}


def parse(lines: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {canonicalize_name(one.name): one for one in requirements}


def required(name: str = "requirements.txt") -> dict[str, Requirement]:
    return parse((ROOT / name).read_text(encoding="utf-8").splitlines())


def optional() -> set[str]:
    return set(parse([line for extra in PROJECT["optional-dependencies"].values() for line in extra]))


class Locked(NamedTuple):
    """A package of requirements.lock."""

    version: Version
    marker: str
    hashes: tuple[str, ...]


Lock = dict[str, list[Locked]]  # by name; several versions have different markers


def read_lock(text: str | None = None) -> Lock:
    """The packages of requirements.lock, or of a text in its format."""
    if text is None:
        text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    lock: Lock = {}
    for line in re.sub(r"\\\n", "", text).splitlines():
        if not line.strip().startswith("#"):
            requirement, *hashes = line.split(" --hash=")
            one = Requirement(requirement)
            [bound] = one.specifier
            assert bound.operator == "=="
            entry = Locked(Version(bound.version), str(one.marker or ""), tuple(name.strip() for name in hashes))
            lock.setdefault(canonicalize_name(one.name), []).append(entry)
    return lock


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


def test_lock_is_within_the_bounds() -> None:
    lock = read_lock()
    for name, requirement in required().items():
        assert name in lock, f"{name} is missing: run the command at the top of requirements.lock"
        for locked in lock[name]:
            assert locked.version in requirement.specifier, f"{name} {locked.version} is not {requirement.specifier}"


def test_lock_has_hashes_and_no_addresses() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|--index|--find-links|--extra|@ ", text)
    for name, entries in read_lock().items():
        for locked in entries:
            assert locked.hashes, name
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in locked.hashes)


def test_lock_is_complete() -> None:
    """Each package that a locked package requires on this machine is locked, within its bounds."""
    lock = read_lock()
    checked = 0
    for name, entries in lock.items():
        here = [one for one in entries if not one.marker or Marker(one.marker).evaluate()]
        assert len(here) <= 1, f"two versions of {name}"
        try:
            lines = requires(name) or [] if here else []
        except PackageNotFoundError:  # CUDA libraries
            continue
        for requirement in map(Requirement, lines):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                [locked] = [
                    one
                    for one in lock[canonicalize_name(requirement.name)]
                    if not one.marker or Marker(one.marker).evaluate()
                ]
                assert locked.version in requirement.specifier, f"{name} requires {requirement}"
                checked += 1
    assert checked > 100


@pytest.mark.slow
def test_lock_is_what_its_command_makes(tmp_path: Path) -> None:
    """uv keeps the locked versions unless requirements.txt excludes them or needs another package."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    [command] = re.findall(r"^#    uv (pip compile .* -o) requirements\.lock$", text, re.MULTILINE)
    copy = tmp_path / "requirements.lock"
    copy.write_text(text)
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run([uv, *command.split(), copy], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode and ("Failed to fetch" in done.stderr or "error sending request" in done.stderr):
        pytest.skip("The package index cannot be reached.")
    assert done.returncode == 0, done.stderr
    made, lock = read_lock(copy.read_text()), read_lock()
    assert {name: {one.version for one in entries} for name, entries in made.items()} == {
        name: {one.version for one in entries} for name, entries in lock.items()
    }
