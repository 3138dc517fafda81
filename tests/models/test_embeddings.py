from __future__ import annotations

from pathlib import Path

import pytest

from canvas.errors import NotFound
from canvas.models.embeddings import list_embeddings, replace_names, requested_embeddings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of embeddings, one name twice, and other files."""
    for name in ("winter.safetensors", "more/winter.pt", "more/Bad-Hands.BIN", "notes.txt"):
        path = tmp_path / "embeddings" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "embeddings" / "folder.pt").mkdir()
    return tmp_path / "embeddings"


def test_files_are_listed_by_name(folder: Path) -> None:
    found = {name: path.relative_to(folder).as_posix() for name, path in list_embeddings(folder).items()}
    assert found == {"winter": "more/winter.pt", "Bad-Hands": "more/Bad-Hands.BIN"}


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (("a fox in winter", ""), {"winter": False}),
        (("Winter.pt, fox", "bad-hands"), {"winter": False, "Bad-Hands": False}),
        (("winters, mid-winter, wintery", "x-bad-hands"), {}),
        (("winter <embed:WINTER>", ""), {"winter": True}),
        (("<embedding: winter >, winter", "embedding:bad-hands, winter"), {"winter": True, "Bad-Hands": True}),
        (("embedding:winter.safetensors", ""), {"winter": True}),
    ],
)
def test_texts_request_embeddings(folder: Path, texts: tuple[str, ...], names: dict[str, bool]) -> None:
    assert {found.name: found.explicit for found in requested_embeddings(texts, folder)} == names


def test_only_the_explicit_syntax_needs_a_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"inversion summer not found.*folder embeddings \(it has: Bad-Hands, winter\)"):
        requested_embeddings(("<embed:summer>",), folder)
    with pytest.raises(NotFound, match=r"it has: none"):
        requested_embeddings(("embedding:summer",), tmp_path / "none")
    assert requested_embeddings(("summer",), folder) == ()


def test_names_are_replaced_in_every_syntax() -> None:
    text = "winter, <embed:winter>, embedding:WINTER, winter.pt, winters, <embed:summer>"
    assert replace_names(text, {"winter": "t1 t2"}) == "t1 t2, t1 t2, t1 t2, t1 t2, winters, <embed:summer>"
