from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from canvas.errors import ConsentRequired
from canvas.models.download import LICENCES_FILE, AcceptedLicences
from tests.conftest import make_spec

FREE = make_spec("o/free", "free")
MODELS = [replace(make_spec(f"o/{name}", name), terms=f"https://example.org/{name}") for name in "ab"]


def test_a_model_is_checked_until_its_licence_is_accepted(tmp_path: Path) -> None:
    licences = AcceptedLicences(tmp_path / "new" / "data")
    licences.check(FREE)
    licences.accept(FREE)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConsentRequired, match=r"The model a has a licence .*https://example\.org/a"):
        licences.check(MODELS[0])
    for spec in (*MODELS, *MODELS):
        licences.accept(spec)
        licences.check(spec)
    assert AcceptedLicences(tmp_path / "new" / "data").accepts(MODELS[1])
    stored = json.loads((tmp_path / "new" / "data" / LICENCES_FILE).read_text())
    assert stored == ["https://example.org/a", "https://example.org/b"]


def test_accepting_again_writes_nothing(tmp_path: Path) -> None:
    licences = AcceptedLicences(tmp_path)
    licences.accept(MODELS[0])
    stored = json.dumps([MODELS[0].terms, "https://example.org/c"])
    (tmp_path / LICENCES_FILE).write_text(stored)
    licences.accept(MODELS[0])
    assert (tmp_path / LICENCES_FILE).read_text() == stored


@pytest.mark.parametrize("stored", ["", "{", "3", '{"https://example.org/a": 1}', "[1, null]"])
def test_people_are_asked_again_after_damage(tmp_path: Path, stored: str) -> None:
    (tmp_path / LICENCES_FILE).write_text(stored)
    licences = AcceptedLicences(tmp_path)
    assert not licences.accepts(MODELS[0])
    licences.accept(MODELS[0])
    assert licences.accepts(MODELS[0])
