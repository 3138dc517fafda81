"""The administrator sees everybody's pictures, and nobody else does."""

from __future__ import annotations

import gc
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from PIL import Image

from canvas import GenerationRequest, Studio
from canvas.catalog import get_model
from canvas.errors import NotFound
from canvas.history.api_keys import ApiKeyStore
from canvas.history.queries import Query
from canvas.request import GeneratedImage
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.visitors import Visitor

ADMIN, OTHERS = "ada", ("local", "key-desk", "visitor-0123")


def keep(studio: Studio, owner: str) -> GeneratedImage:
    request = GenerationRequest(f"a secret of {owner}", seed=1, num_inference_steps=1)
    resolved = request.with_defaults(get_model("starter", studio.models))
    pixels = Image.new("RGB", (128, 128))
    made = GeneratedImage(resolved, "", 1.0, "cpu", "float32", image=pixels, owner=owner)
    return studio.image_repository.save(made)


@dataclass
class Place:
    studio: Studio
    url: str
    key: str
    pictures: dict[str, GeneratedImage]

    def logged_in(self) -> Visitor:
        visitor = Visitor(self.url, cookies=False)
        visitor.cookies = True
        login = {"username": ADMIN, "password": "pw"}
        assert visitor.client.post("/login", data=login).status_code == 200
        visitor.config = visitor.client.get("/config").json()
        return visitor

    def with_key(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60)


@pytest.fixture(params=[ADMIN, None], ids=["with an administrator", "without"])
def place(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    settings = replace(settings, port=0, auth=(ADMIN, "pw"), admin=request.param)
    with Studio(settings) as studio:
        pictures = {owner: keep(studio, owner) for owner in (ADMIN, *OTHERS)}
        page = launch(studio, block=False)
        yield Place(studio, page.local_url, ApiKeyStore(studio.database).create("desk"), pictures)
        page.close()
    gc.collect()  # Gradio leaves event loops open; see tests/api/conftest.py


def gallery_of(visitor: Visitor, whose: str) -> bytes:
    event = visitor.event("show_first")
    return visitor.call(event, visitor.data_of(event, Whose=whose))


def prompts_in(archive: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as content:
        lines = content.read("metadata.jsonl").decode()
    return {owner for owner in (ADMIN, *OTHERS) if f"a secret of {owner}" in lines}


def test_only_the_administrator_sees_all_on_the_page(place: Place) -> None:
    visitor = place.logged_in()
    mine, all_of_them = gallery_of(visitor, "mine"), gallery_of(visitor, "everybody's")
    visitor.close()
    seen = {owner for owner in OTHERS if f"a secret of {owner}".encode() in all_of_them}
    assert seen == (set(OTHERS) if place.studio.settings.admin else set())
    for page in (mine, all_of_them):
        assert f"a secret of {ADMIN}".encode() in page
    assert not any(f"a secret of {owner}".encode() in mine for owner in OTHERS)


def test_only_the_administrator_exports_all(place: Place) -> None:
    visitor = place.logged_in()
    theirs = visitor.client.get("/export.zip?everybody=1").content
    own = visitor.client.get("/export.zip").content
    visitor.close()
    everybody = {ADMIN, *OTHERS} if place.studio.settings.admin else {ADMIN}
    assert prompts_in(theirs) == everybody
    assert prompts_in(own) == {ADMIN}
    with place.with_key() as desk:
        assert prompts_in(desk.get("/export.zip?everybody=1").content) == {"key-desk"}


def test_who_is_no_administrator_sees_nothing_of_another(place: Place) -> None:
    for owner in OTHERS:
        mine = place.studio.user_gallery(owner)
        for other, image in place.pictures.items():
            if other == owner:
                assert mine.image(image.id or 0) == image
                continue
            with pytest.raises(NotFound):
                mine.image(image.id or 0)
        for query in (Query(), Query(owner=ADMIN), Query(owner="local")):
            assert [image.owner for image in mine.search(query)] == [owner]
            assert mine.count(query) == 1


def test_the_administrator_sees_and_does_not_touch(place: Place) -> None:
    mine = place.studio.user_gallery(ADMIN)
    ids = [image.id or 0 for image in place.pictures.values()]
    before = place.studio.database.recent(None)
    assert mine.favourite(ids, True) == 1
    token, number = mine.delete(ids)
    assert number == 1
    mine.undo(token)
    mine.favourite(ids, False)
    assert mine.totals(Query(owner=None))[0] == 1
    assert mine.delete_all() == 1
    left = place.studio.database.recent(None)
    assert left == [image for image in before if image.owner != ADMIN]


def test_single_pictures_and_another_owners_query(place: Place) -> None:
    mine: Any = place.studio.user_gallery(ADMIN)
    image = place.pictures["local"]
    if place.studio.settings.admin:
        assert place.studio.image(image.id or 0, ADMIN) == image
        assert mine.count(Query(owner="local")) == 1
        assert mine.count(Query()) == 1 + len(OTHERS)
    else:
        with pytest.raises(NotFound):
            place.studio.image(image.id or 0, ADMIN)
        assert [one.owner for one in mine.search(Query(owner="local"))] == [ADMIN]
