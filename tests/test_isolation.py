"""On a public server no visitor receives anything of another: every route, event and path."""

from __future__ import annotations

import functools
import gc
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import psutil
import pytest

from canvas import GenerationRequest, Studio
from canvas.catalog import ASSETS
from canvas.history.comparisons import Comparisons
from canvas.jobs.job import Job
from canvas.request import GeneratedImage
from canvas.server.identity import COOKIE, visitor_owner_id
from canvas.server.launch import launch
from canvas.settings import Settings
from canvas.ui.app import MAX_SESSIONS
from tests.app_server import save_image, slow_down_steps
from tests.backends.cluster import running_cluster
from tests.visitors import Visitor, routes_of

PROMPT = "quetzalfinch in a velvet fjord"
PARAMETER = re.compile(r"\{(\w+)(?::\w+)?\}")
TEMPLATES = [path.read_text(encoding="utf-8") for path in (ASSETS / "templates").glob("*.html")]
ACTIONS = sorted(set(re.findall(r'data-action="(\w+)"', "".join(TEMPLATES))))
RUNNING = "xylographer below a saffron moon"


@dataclass
class PublicServer:
    """A served studio where one visitor, Ann, has an image, a running job and a comparison."""

    studio: Studio
    app: Any
    ann: Visitor
    image: GeneratedImage
    job: Job
    comparison: str

    @functools.cached_property
    def content(self) -> bytes:
        return self.studio.image_path(self.image.filename).read_bytes()

    @functools.cached_property
    def secrets(self) -> dict[str, bytes]:
        """What only Ann may find in a response, by name."""
        content = self.content
        texts = {
            "prompt": "quetzalfinch",
            "running prompt": "xylographer",
            "filename": Path(self.image.filename).stem,
            "job": self.job.id,
            "comparison": self.comparison,
            "owner": self.image.owner,
            "cookie": self.ann.client.cookies[COOKIE],
            "session": self.ann.session,
            "program folder": str(ASSETS),
        }
        found = {name: text.encode() for name, text in texts.items()}
        middle = len(content) // 2
        return {**found, "image": content[middle : middle + 64]}


def settings_of(kind: str, folder: Path, environ: pytest.MonkeyPatch, cluster: str | None) -> Settings:
    """Settings of a public server, also with workers, or of a Space."""
    options = {"cache_dir": folder / "cache", "port": 0, "device": "cpu", "dtype": "float32", "engine": "torch"}
    if kind != "space":
        workers = 2 if kind == "workers" else None
        return Settings(data_dir=folder, public=True, workers=workers, cluster=cluster, **options)
    for name, value in {"SYSTEM": "spaces", "SPACE_ID": "ann/canvas"}.items():
        environ.setenv(name, value)
    environ.setenv("CANVAS_BUCKET", str(folder))
    return Settings.from_environment(**options)


@pytest.fixture(
    scope="module",
    params=["public", *(pytest.param(kind, marks=pytest.mark.long) for kind in ("space", "workers", "cluster"))],
)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PublicServer]:
    environ = pytest.MonkeyPatch()
    with ExitStack() as stack:
        cluster = None
        if request.param == "cluster":
            pytest.importorskip("ray", reason="needs the extra `cluster`")
            cluster = stack.enter_context(running_cluster(tmp_path_factory.mktemp("nodes"))).address
        settings = settings_of(request.param, tmp_path_factory.mktemp("public"), environ, cluster)
        studio = stack.enter_context(Studio(settings))
        page = launch(studio, block=False)
        ann = Visitor(page.local_url)
        generate = ann.event("page_generate")
        ann.call(generate, ann.inputs_of(generate, Prompt=PROMPT, Steps=1))
        owner = visitor_owner_id(ann.client.cookies[COOKIE].partition(".")[0])
        [job] = studio.jobs(owner)
        [image] = job.wait()
        studio.image_path(image.filename, thumbnail=True)
        running = GenerationRequest(RUNNING, width=128, height=128, num_images=16)
        running = replace(running, num_inference_steps=150, guidance_scale=4.0)
        add_symlinks(studio, image)
        comparison = Comparisons(studio.database).add(owner, [image.request]).id
        *_, last = [studio.submit(running, owner) for _ in range(5)]
        slow_down_steps(environ, 0.2)
        for worker in psutil.Process().children(recursive=True):
            worker.nice(19 if sys.platform == "linux" else None)
        yield PublicServer(studio, page.app, ann, image, last, comparison)
        ann.close()
        for job in studio.jobs(None):
            job.cancel()
        page.close()
    environ.undo()
    gc.collect()  # Gradio leaves event loops open; see tests/app_server.py


def add_symlinks(studio: Studio, image: GeneratedImage) -> None:
    """Symlinks and other files that somebody may have put into the outputs folder."""
    outputs = studio.settings.outputs_dir
    (outputs / "link.png").symlink_to(studio.settings.database_path)
    (outputs / "again.png").symlink_to(studio.image_path(image.filename))
    (outputs / "notes.txt").write_text("quetzalfinch")
    (outputs / "root").symlink_to("/")


@pytest.fixture(params=["another visitor", "a visitor without cookies"])
def other(request: pytest.FixtureRequest, server: PublicServer) -> Iterator[Visitor]:
    visitor = Visitor(server.ann.url)
    visitor.cookies = request.param == "another visitor"
    yield visitor
    visitor.close()


def assert_no_secrets(server: PublicServer, response: bytes, request: object, sent: str = "") -> None:
    """`sent` is the content of the request, which the response may repeat."""
    for name, secret in server.secrets.items():
        if secret.decode("latin-1") not in sent:
            assert secret not in response, f"the response to {request} has the {name}"


def guesses(server: PublicServer) -> dict[str, list[str]]:
    """Values for the parameters of routes."""
    data = server.studio.settings.data_dir
    ids = ["1", str(server.image.id), server.job.id, "0", "-1", "null"]
    names = ["1.png", "ai_images.db", ".", "..", "*", "%", "_", "' OR 1=1 --", str(data)]
    events = [str(event["api_name"]) for event in server.ann.config["dependencies"]]
    return {
        "filename": names,
        "api_name": events,
        "path": [*names, str(data / "ai_images.db")],
        "path_or_url": [*names, str(data / "ai_images.db"), "http://127.0.0.1/"],
        "session_hash": [server.ann.session, "null"],  # streams without an end
        "": ids,
    }


def with_parameters(path: str, server: PublicServer) -> Iterator[str]:
    """The route's path with every guess in its parameters."""
    parameters = PARAMETER.findall(path)
    if not parameters:
        yield path
        return
    known = guesses(server)
    tries = [known.get(name, known[""]) for name in parameters]
    if path.endswith("/"):  # the handler of the route without the slash
        tries = [values[:2] for values in tries]
    for number in range(max(map(len, tries))):
        values = iter([values[number % len(values)] for values in tries])
        yield PARAMETER.sub(lambda _, left=values: quote(next(left), safe=""), path)


def bodies(route: str, server: PublicServer, other: Visitor) -> list[dict[str, Any]]:
    # Each visitor has a session: what one sent must not reach the next one as a secret.
    session = {"session_hash": other.session}
    ids = {"data": [server.image.id, server.job.id], "fn_index": 5, "event_id": server.job.id}
    empty: dict[str, Any] = {"data": [], "prompt": "", "body": {}}
    # Without a session, Gradio builds one for every call of an event, which takes most of its time.
    return [ids | session, empty | session if "{api_name}" in route else empty]


def test_no_route_reveals_anything_of_another_visitor(
    server: PublicServer, other: Visitor, record_property: Callable[[str, object], None]
) -> None:
    routes = set(routes_of(server.app))
    assert len(routes) > 100
    num_responses = 0
    for method, route in sorted(routes):
        for path in with_parameters(route, server):
            if method == "POST":
                requests: list[tuple[str, Any]] = [(path, body) for body in bodies(route, server, other)]
            else:
                query = f"session_hash=null&ids={server.image.id}&limit=100&upload_id=1"
                requests = [(path, None), (f"{path}?{query}", None)]
            for target, body in requests:
                status, response = other.request(method, target, body)
                num_responses += status != 0
                request = (method, target, body, status)
                assert_no_secrets(server, response, request, f"{target}{body}")
    for target, response in other.endless_responses():
        assert_no_secrets(server, response, target, target)
    record_property("routes", len(routes))
    record_property("answers", num_responses)
    assert num_responses > 400
    assert not server.job.finished, "there was progress to see all the time"


def test_no_page_event_reveals_anything_of_another_visitor(server: PublicServer) -> None:
    other = Visitor(server.ann.url)
    number, job = str(server.image.id), server.job.id
    clicks = [
        {
            "action": action,
            "image": number,
            "job": job,
            "comparison": server.comparison,
            "position": 0,
            "favourite": "true",
            "page": 0,
            "model": "starter",
        }
        for action in ACTIONS
    ]
    assert len(clicks) > 20
    components = other.config["components"]
    html = {component["id"] for component in components if component["type"] == "html"}
    click_events = 0
    for event in other.config["dependencies"]:
        is_click = any(target in html and name == "click" for target, name in event["targets"])
        click_events += is_click
        sent = clicks if is_click else [None]
        answers = other.call_all((event, other.inputs_of(event), click) for click in sent)
        for click, answer in zip(sent, answers, strict=True):
            assert_no_secrets(server, answer, (event["api_name"], click), str(click))
    assert click_events > 5
    other.close()
    stored = server.studio.database.image(server.image.id or 0)
    assert stored == server.image, "unchanged and no favourite"
    assert not server.job.finished, "only Ann can cancel it"
    assert Comparisons(server.studio.database).tally(None) == (), "only Ann can vote"


def traversals(server: PublicServer) -> list[str]:
    """Paths to the database, folders and system files, in all known encodings."""
    data = server.studio.settings.data_dir.resolve()
    outputs = server.studio.settings.outputs_dir.resolve()
    day = server.studio.image_path(server.image.filename).parent
    database, name = str(data / "ai_images.db"), "ai_images.db"
    ups = ["../", "..%2f", "%2e%2e/", "%2e%2e%2f", "%252e%252e%252f", "..%5c", "..\\", "....//"]
    ups += ["..;/", "%c0%ae%c0%ae/", "..%c0%af", "%uff0e%uff0e/", ".%00./", "..%00/"]
    relative = [up * times + name for up in ups for times in (1, 2, 3, 8)]
    absolute = [database, quote(database, safe=""), quote(quote(database, safe=""), safe="")]
    absolute += [f"{database}%00.png", f"/{database}", f"file://{database}", "/etc/passwd"]
    absolute += [f"{outputs}/../{name}", f"{outputs}/%2e%2e/{name}", f"{outputs}/./../{name}"]
    absolute += [f"{database}-wal", f"{data}/models.toml", "/proc/self/environ", "/proc/self/cmdline"]
    shares = ["//host/share/x.png", "\\\\host\\share\\x.png", "%5c%5chost%5cshare", "C:\\x.png"]
    folders = [str(data), str(outputs), str(day), f"{outputs}/.thumbnails", f"{outputs}/.trash"]
    links = [f"{outputs}/{link}" for link in ("link.png", "again.png", "notes.txt", "root/etc/passwd")]
    return [*relative, *absolute, *shares, *folders, *[f"{f}/" for f in folders], *links]


FILE_ROUTES = (
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


def test_no_path_traversal(server: PublicServer, other: Visitor) -> None:
    for route in FILE_ROUTES:
        for path in traversals(server):
            status, headers, content = other.send("GET", route + path)
            request, response = (route + path, status), headers + content
            assert b"SQLite format 3" not in response, request
            assert b"root:" not in response, request
            assert b"PATH=" not in response, request
            assert_no_secrets(server, response, request, path)


def test_no_url_is_fetched_for_a_visitor(server: PublicServer, other: Visitor) -> None:
    for path in ("file=http://example.com/", "file=https:/example.com", "file/http://localhost/"):
        assert other.send("GET", f"/gradio_api/{path}")[0] == 404
    assert other.send("GET", "/gradio_api/proxy=https://a.hf.space/file=x")[0] == 404


def test_gradio_monitoring_is_off(server: PublicServer, other: Visitor) -> None:
    for path in ("/monitoring", "/monitoring/summary", "/monitoring/x"):
        assert other.request("GET", path)[0] == 404
    assert other.request("GET", "/gradio_api/runs")[0] == 404
    assert other.request("GET", "/gradio_api/vibe-code")[0] == 404
    queue = server.app.get_blocks()._queue
    assert queue.cached_event_analytics_summary == {"functions": {}}, "no statistics"
    assert len(queue.event_analytics) == 1, "no event log"
    assert server.app.state_holder.capacity == MAX_SESSIONS


def links(server: PublicServer, image: GeneratedImage) -> list[str]:
    name, path = image.filename, server.studio.settings.data_dir.resolve() / image.filepath
    return [f"/pictures/{name}", f"/thumbnails/{name}", f"/downloads/{name}", f"/gradio_api/file={path}"]


def test_image_links_work_until_the_image_is_deleted(server: PublicServer, other: Visitor) -> None:
    image = save_image(server.studio, "visitor-giver")
    etags = {}
    for link in links(server, image):
        response = other.client.get(link)
        assert response.status_code == 200, link
        assert "max-age" not in response.headers.get("cache-control", "")
        etags[link] = response.headers.get("etag", '"x"')
    first = links(server, image)[0]
    response = other.client.get(first)
    assert response.headers["cache-control"] == "private, no-cache"
    revalidate = {"If-None-Match": response.headers["etag"]}
    assert other.client.get(first, headers=revalidate).status_code == 304
    token, _ = server.studio.image_repository.trash.delete([image.id or 0], "visitor-giver")
    for link, etag in etags.items():
        for headers in ({}, {"If-None-Match": etag}, {"Range": "bytes=0-99"}):
            assert other.client.get(link, headers=headers).status_code in (403, 404), link
    server.studio.image_repository.trash.undo(token, "visitor-giver")
    assert other.client.get(first).status_code == 200
    server.studio.image_repository.delete_all("visitor-giver")
    for link in links(server, image):
        assert other.client.get(link).status_code in (403, 404), link


def test_the_owner_receives_everything(server: PublicServer) -> None:
    """Otherwise a server without any response would pass the tests above."""
    ann, name = server.ann, server.image.filename
    [newest] = server.studio.recent(server.image.owner, 1)
    events = [one for one in ann.config["dependencies"] if str(one["api_name"]).startswith("poll")]
    messages = [ann.call(event, ann.inputs_of(event)) for event in events]
    assert any(newest.filename.encode() in message for message in messages)
    assert ann.client.get(f"/pictures/{name}").content == server.content
    _, archive = ann.request("GET", f"/export.zip?ids={server.image.id}")
    assert server.secrets["image"] in archive
    assert SimpleNamespace(**ann.client.get("/healthz").json()).status == "ok"
