"""Two visitors and a stranger on a public server: nothing of one reaches another."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from canvas import GenerationRequest, Studio
from canvas.catalog import ASSETS
from canvas.history.comparisons import Comparisons
from canvas.jobs.job import Job
from canvas.request import GeneratedImage
from canvas.server.identity import COOKIE, visitor_owner_id
from canvas.server.launch import launch
from canvas.settings import Settings
from canvas.ui.app import SESSIONS
from tests.visitors import Visitor, routes_of

PROMPT = "quetzalfinch in a velvet fjord"
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
ACTIONS = ["show", "use", "open", "toggle", "select", "favourite", "compare", "delete", "undo"]
ACTIONS += ["variations", "remove", "resume", "dismiss", "erase", "thumbnails", "model"]
ACTIONS += ["vote", "stop", "pick"]
RUNNING = "xylographer below a saffron moon"


@dataclass
class Place:
    """A served studio with what one visitor, Ann, made there and has being made."""

    studio: Studio
    app: Any
    ann: Visitor
    picture: GeneratedImage
    job: Job
    comparison: str

    @property
    def content(self) -> bytes:
        return self.studio.image_path(self.picture.filename).read_bytes()

    def secrets(self) -> dict[str, bytes]:
        """What nobody but Ann may find in any answer."""
        content = self.content
        texts = {
            "prompt": "quetzalfinch",
            "running prompt": "xylographer",
            "filename": Path(self.picture.filename).stem,
            "job": self.job.id,
            "comparison": self.comparison,
            "owner": self.picture.owner,
            "cookie": self.ann.client.cookies[COOKIE],
            "session": self.ann.session,
            "folder of the program": str(ASSETS),
        }
        found = {name: text.encode() for name, text in texts.items()}
        middle = len(content) // 2
        return {**found, "picture": content[middle : middle + 64]}


def settings_of(kind: str, folder: Path, environ: pytest.MonkeyPatch) -> Settings:
    """A server for strangers: told so, or as a Space finds itself."""
    plain = {"cache_dir": folder / "cache", "port": 0, "device": "cpu", "dtype": "float32"}
    if kind == "public":
        return Settings(data_dir=folder, public=True, **plain)
    for name, value in {"SYSTEM": "spaces", "SPACE_ID": "ann/canvas"}.items():
        environ.setenv(name, value)
    environ.setenv("CANVAS_BUCKET", str(folder))
    return Settings.from_environment(**plain)


@pytest.fixture(scope="module", params=["public", pytest.param("space", marks=pytest.mark.long)])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    environ = pytest.MonkeyPatch()
    settings = settings_of(request.param, tmp_path_factory.mktemp("public"), environ)
    with Studio(settings) as studio:
        page = launch(studio, block=False)
        ann = Visitor(page.local_url)
        generate = ann.event("page_generate")
        ann.call(generate, ann.data_of(generate, Prompt=PROMPT, Steps=1))
        owner = visitor_owner_id(ann.client.cookies[COOKIE])
        [made] = studio.jobs(owner)
        [picture] = made.wait()
        studio.image_path(picture.filename, thumbnail=True)
        running = GenerationRequest(RUNNING, width=128, height=128, num_images=16)
        running = replace(running, num_inference_steps=150, guidance_scale=4.0)
        lay_traps(studio, picture)
        compared = Comparisons(studio.database).add(owner, [picture.request]).id
        *_, last = [studio.submit(running, owner) for _ in range(4)]
        yield Place(studio, page.app, ann, picture, last, compared)
        ann.close()
        for job in studio.jobs(None):
            job.cancel()
        page.close()
    environ.undo()
    gc.collect()  # Gradio leaves event loops open; see tests/api/conftest.py


def lay_traps(studio: Studio, picture: GeneratedImage) -> None:
    """What a careless hand may put among the pictures."""
    outputs = studio.settings.outputs_dir
    (outputs / "link.png").symlink_to(studio.settings.database_path)
    (outputs / "again.png").symlink_to(studio.image_path(picture.filename))
    (outputs / "notes.txt").write_text("quetzalfinch")
    (outputs / "root").symlink_to("/")


@pytest.fixture(params=["another visitor", "a stranger without cookies"])
def other(request: pytest.FixtureRequest, place: Place) -> Iterator[Visitor]:
    visitor = Visitor(place.ann.url)
    visitor.cookies = request.param == "another visitor"
    yield visitor
    visitor.close()


def assert_tells_nothing(place: Place, answer: bytes, asked: object, known: str = "") -> None:
    """`known`: what the asker sent, so that an echo of it is no news."""
    for name, secret in place.secrets().items():
        if secret.decode("latin-1") not in known:
            assert secret not in answer, f"{asked} tells the {name}"


def guesses(place: Place) -> dict[str, list[str]]:
    """What somebody could put into the parameters of a route."""
    data = place.studio.settings.data_dir
    ids = ["1", str(place.picture.id), place.job.id, "0", "-1", "null"]
    names = ["1.png", "ai_images.db", ".", "..", "*", "%", "_", "' OR 1=1 --", str(data)]
    events = [str(event["api_name"]) for event in place.ann.config["dependencies"]]
    return {
        "filename": names,
        "api_name": events,
        "path": [*names, str(data / "ai_images.db")],
        "path_or_url": [*names, str(data / "ai_images.db"), "http://127.0.0.1/"],
        "": ids,
    }


def filled(path: str, place: Place) -> Iterator[str]:
    """The route's path with every guess in its parameters."""
    parameters = PARAMETER.findall(path)
    if not parameters:
        yield path
        return
    known = guesses(place)
    tries = [known.get(name, known[""]) for name in parameters]
    for number in range(max(map(len, tries))):
        values = iter([values[number % len(values)] for values in tries])
        yield PARAMETER.sub(lambda _, left=values: quote(next(left), safe=""), path)


def bodies(place: Place, other: Visitor) -> list[dict[str, Any]]:
    ids = [place.picture.id, place.job.id]
    # A session of their own: what one asker sent must not come back to the next one as a secret.
    return [
        {"data": ids, "session_hash": other.session, "fn_index": 5, "event_id": place.job.id},
        {"data": [], "prompt": "", "body": {}},
    ]


def test_no_route_tells_anything_of_another(
    place: Place, other: Visitor, record_property: Callable[[str, object], None]
) -> None:
    routes = set(routes_of(place.app))
    assert len(routes) > 100
    answered = 0
    for method, route in sorted(routes):
        for path in filled(route, place):
            sends: list[dict[str, Any]] = [{}]
            if method == "POST":
                sends = [{"json": body} for body in bodies(place, other)]
            else:
                query = f"?session_hash=null&ids={place.picture.id}&limit=100&upload_id=1"
                sends = [{}, {"params": httpx.QueryParams(query)}]
            for sent in sends:
                status, answer = other.ask(method, path, **sent)
                answered += status != 0
                assert_tells_nothing(place, answer, (method, path, sent, status), path + str(sent))
    record_property("routes", len(routes))
    record_property("answers", answered)
    assert answered > 400
    assert not place.job.finished, "there was progress to be seen all the time"


def test_no_event_of_the_page_tells_anything_of_another(place: Place) -> None:
    other = Visitor(place.ann.url)
    number, job = str(place.picture.id), place.job.id
    clicks = [
        {
            "action": action,
            "image": number,
            "job": job,
            "comparison": place.comparison,
            "place": 0,
            "mark": "true",
            "page": 0,
            "model": "starter",
        }
        for action in ACTIONS
    ]
    for event in other.config["dependencies"]:
        is_click = str(event["api_name"]).startswith(("act", "clean", "free"))
        for click in clicks if is_click else [None]:
            answer = other.call(event, other.data_of(event), click)
            assert_tells_nothing(place, answer, (event["api_name"], click), str(click))
    other.close()
    kept = place.studio.database.image(place.picture.id or 0)
    assert kept == place.picture, "it is as it was, and no favourite"
    assert not place.job.finished, "nobody but Ann stops it"
    assert Comparisons(place.studio.database).tally(None) == (), "and nobody votes for her"


def traversals(place: Place) -> list[str]:
    """Ways to the database, to folders and to the system, written in every way that is known."""
    data = place.studio.settings.data_dir.resolve()
    outputs = place.studio.settings.outputs_dir.resolve()
    day = place.studio.image_path(place.picture.filename).parent
    database, name = str(data / "ai_images.db"), "ai_images.db"
    ups = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%5c", "..\\", "....//"]
    ups += ["..;/", "%c0%ae%c0%ae/", "..%c0%af", "%uff0e%uff0e/", ".%00./", "..%00/"]
    relative = [up * times + name for up in ups for times in (1, 2, 3, 8)]
    absolute = [database, quote(database, safe=""), quote(quote(database, safe=""), safe="")]
    absolute += [f"{database}%00.png", f"/{database}", f"file://{database}", "/etc/passwd"]
    absolute += [f"{outputs}/../{name}", f"{outputs}/%2e%2e/{name}", f"{outputs}/./../{name}"]
    absolute += [
        f"{database}-wal",
        f"{data}/models.toml",
        "/proc/self/environ",
        "/proc/self/cmdline",
    ]
    shares = ["//host/share/x.png", "\\\\host\\share\\x.png", "%5c%5chost%5cshare", "C:\\x.png"]
    folders = [str(data), str(outputs), str(day), f"{outputs}/.thumbnails", f"{outputs}/.trash"]
    links = [
        f"{outputs}/{link}" for link in ("link.png", "again.png", "notes.txt", "root/etc/passwd")
    ]
    return [*relative, *absolute, *shares, *folders, *[f"{f}/" for f in folders], *links]


DOORS = (
    "/gradio_api/file=",
    "/gradio_api/file/",
    "/gradio_api/proxy=",
    "/pictures/",
    "/thumbnails/",
    "/downloads/",
    "/static/",
    "/assets/",
    "/svelte/",
    "/",
)


def test_no_path_leads_out_of_the_pictures(place: Place, other: Visitor) -> None:
    for door in DOORS:
        for path in traversals(place):
            status, answer = other.raw(door + path)
            asked = (door + path, status)
            assert b"SQLite format 3" not in answer, asked
            assert b"root:" not in answer, asked
            assert b"PATH=" not in answer, asked
            assert_tells_nothing(place, answer, asked, path)


def test_nothing_is_fetched_for_a_visitor(place: Place, other: Visitor) -> None:
    for path in ("file=http://example.com/", "file=https:/example.com", "file/http://localhost/"):
        assert other.raw(f"/gradio_api/{path}")[0] == 404
    assert other.raw("/gradio_api/proxy=https://a.hf.space/file=x")[0] == 404


def test_what_watches_over_gradio_is_off(place: Place, other: Visitor) -> None:
    for path in ("/monitoring", "/monitoring/summary", "/monitoring/x"):
        assert other.ask("GET", path)[0] == 403
    assert other.ask("GET", "/gradio_api/runs")[0] == 404
    assert other.ask("GET", "/gradio_api/vibe-code")[0] in (403, 404)
    queue = place.app.get_blocks()._queue
    assert queue.cached_event_analytics_summary == {"functions": {}}, "events are not counted"
    assert len(queue.event_analytics) == 1, "nor kept"
    assert place.app.state_holder.capacity == SESSIONS


def links(place: Place, picture: GeneratedImage) -> list[str]:
    name, path = picture.filename, place.studio.settings.data_dir.resolve() / picture.filepath
    return [
        f"/pictures/{name}",
        f"/thumbnails/{name}",
        f"/downloads/{name}",
        f"/gradio_api/file={path}",
    ]


def test_a_pictures_own_link_works_until_it_is_deleted(place: Place, other: Visitor) -> None:
    for job in place.studio.jobs(None):  # the last test that needs them is above
        job.cancel()
    [picture] = place.studio.generate(
        GenerationRequest("a gift", num_inference_steps=1), "visitor-giver"
    )
    tags = {}
    for link in links(place, picture):
        answer = other.client.get(link)
        assert answer.status_code == 200, link
        assert "max-age" not in answer.headers.get("cache-control", "")
        tags[link] = answer.headers.get("etag", '"x"')
    shown = other.client.get(links(place, picture)[0])
    assert shown.headers["cache-control"] == "private, no-cache"
    again = {"If-None-Match": shown.headers["etag"]}
    assert other.client.get(links(place, picture)[0], headers=again).status_code == 304
    token, _ = place.studio.image_repository.delete([picture.id or 0], "visitor-giver")
    for link, tag in tags.items():
        for headers in ({}, {"If-None-Match": tag}, {"Range": "bytes=0-99"}):
            assert other.client.get(link, headers=headers).status_code in (403, 404), link
    place.studio.image_repository.undo(token, "visitor-giver")
    assert other.client.get(links(place, picture)[0]).status_code == 200
    place.studio.image_repository.delete_all("visitor-giver")
    for link in links(place, picture):
        assert other.client.get(link).status_code in (403, 404), link


def test_the_owner_gets_all_of_it(place: Place) -> None:
    """Else the tests above would pass with a server that answers nothing."""
    ann, look = place.ann, place.ann.event("look_1")
    heard = ann.call(look, ann.data_of(look))
    assert place.picture.filename.encode() in heard
    name = place.picture.filename
    assert ann.client.get(f"/pictures/{name}").content == place.content
    archive = ann.ask("GET", f"/export.zip?ids={place.picture.id}")
    assert place.secrets()["picture"] in archive[1]
    assert SimpleNamespace(**ann.client.get("/healthz").json()).status == "ok"
