"""Only the administrator sees the images of all owners."""

from __future__ import annotations

import gc
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from canvas import Studio
from canvas.errors import NotFound
from canvas.history.api_keys import ApiKeyStore
from canvas.history.queries import Query
from canvas.request import GeneratedImage
from canvas.server.launch import launch
from canvas.settings import Settings
from tests.app_server import save_image
from tests.visitors import Visitor

ADMIN, OTHERS = "ada", ("local", "key-desk", "visitor-0123")


@dataclass
class Server:
    studio: Studio
    url: str
    key: str
    images: dict[str, GeneratedImage]

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


@pytest.fixture(params=[ADMIN, pytest.param(None, marks=pytest.mark.slow)], ids=["with an administrator", "without"])
def server(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    settings = settings.model_copy(update={"port": 0, "auth": (ADMIN, "pw"), "admin": request.param})
    with Studio(settings) as studio:
        images = {owner: save_image(studio, owner) for owner in (ADMIN, *OTHERS)}
        page = launch(studio, block=False)
        yield Server(studio, page.local_url, ApiKeyStore(studio.database).create("desk"), images)
        page.close()
    gc.collect()  # Gradio leaves event loops open; see tests/app_server.py


def gallery_of(visitor: Visitor, whose: str) -> bytes:
    """The answer of the event that updates the grid: of the polling events the one with a choice of owners."""
    events = [one for one in visitor.config["dependencies"] if str(one["api_name"]).startswith("poll")]
    [event] = [one for one in events if whose in visitor.inputs_of(one, Owner=whose)]
    return visitor.call(event, visitor.inputs_of(event, Owner=whose))


def prompts_in(archive: bytes) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(archive)) as content:
        lines = content.read("metadata.jsonl").decode()
    return {owner for owner in (ADMIN, *OTHERS) if f"a secret of {owner}" in lines}


def test_only_the_administrator_sees_all_images_on_the_page(server: Server) -> None:
    visitor = server.logged_in()
    own, everything = gallery_of(visitor, "mine"), gallery_of(visitor, "all users")
    visitor.close()
    seen = {owner for owner in OTHERS if f"a secret of {owner}".encode() in everything}
    assert seen == (set(OTHERS) if server.studio.settings.admin else set())
    for page in (own, everything):
        assert f"a secret of {ADMIN}".encode() in page
    assert not any(f"a secret of {owner}".encode() in own for owner in OTHERS)


def test_only_the_administrator_exports_all(server: Server) -> None:
    visitor = server.logged_in()
    everything = visitor.client.get("/export.zip?everybody=1").content
    own = visitor.client.get("/export.zip").content
    visitor.close()
    everybody = {ADMIN, *OTHERS} if server.studio.settings.admin else {ADMIN}
    assert prompts_in(everything) == everybody
    assert prompts_in(own) == {ADMIN}
    with server.with_key() as desk:
        assert prompts_in(desk.get("/export.zip?everybody=1").content) == {"key-desk"}


def test_other_owners_see_their_own_images_only(server: Server) -> None:
    for owner in OTHERS:
        gallery = server.studio.user_gallery(owner)
        for other, image in server.images.items():
            if other == owner:
                assert gallery.image(image.id or 0) == image
                continue
            with pytest.raises(NotFound):
                gallery.image(image.id or 0)
        for query in (Query(), Query(owner=ADMIN), Query(owner="local")):
            assert [image.owner for image in gallery.search(query)] == [owner]
            assert gallery.count(query) == 1


def test_the_administrator_cannot_change_images_of_others(server: Server) -> None:
    gallery = server.studio.user_gallery(ADMIN)
    ids = [image.id or 0 for image in server.images.values()]
    before = server.studio.database.recent(None)
    assert gallery.favourite(ids, True) == 1
    token, number = gallery.delete(ids)
    assert number == 1
    with pytest.raises(NotFound):
        gallery.delete(ids)
    gallery.undo(token)
    gallery.favourite(ids, False)
    assert gallery.totals(Query(owner=None))[0] == 1
    assert gallery.delete_all() == 1
    remaining = server.studio.database.recent(None)
    assert remaining == [image for image in before if image.owner != ADMIN]


def test_single_images_and_queries_for_another_owner(server: Server) -> None:
    gallery: Any = server.studio.user_gallery(ADMIN)
    image = server.images["local"]
    if server.studio.settings.admin:
        assert server.studio.image(image.id or 0, ADMIN) == image
        assert gallery.count(Query(owner="local")) == 1
        assert gallery.count(Query()) == 1 + len(OTHERS)
    else:
        with pytest.raises(NotFound):
            server.studio.image(image.id or 0, ADMIN)
        assert [found.owner for found in gallery.search(Query(owner="local"))] == [ADMIN]
