"""Only the listed routes exist; bodies and uploads are limited on each; images need the login."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import gradio as gr
import httpx
import pytest
from gradio.routes import App
from gradio.utils import get_upload_folder

from canvas import Studio
from canvas.server.rate_limits import FormCounter
from canvas.server.routes import GRADIO_ROUTES, only_final_app
from canvas.server.uploads import DEFAULT_LIMIT, LIMITS, limit_of
from tests.app_server import save_image, serving
from tests.visitors import Visitor, routes_of

PARAMETER = re.compile(r"\{\w+(?::\w+)?\}")
OWN_PREFIXES = (
    *("/v1/", "/sdapi/", "/controlnet/", "/internal/"),
    *("/docs", "/openapi.json", "/redoc", "/static-offline-docs"),
)
OWN_ROUTES = ("/healthz", "/metrics", "/export.zip", "/pictures/x", "/thumbnails/x", "/downloads/x")
# Headers of a part of a form; whether each is a file is up to the parser.
DISPOSITIONS = (
    'form-data; name="files"; filename="f.txt"',
    "form-data; name=files; filename=f.txt",
    "form-data; name=files; filename=",
    'FORM-DATA; filename = "f"; name="files"',
    'form-data; name="files"; FileName="f"',
    "form-data; name=files; filename*=UTF-8''f.txt",
    'form-data; name="files"',
)


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with serving(tmp_path_factory.mktemp("routes"), public=True) as studio:
        yield studio


@pytest.fixture(scope="module")
def visitor(studio: Studio) -> Iterator[Visitor]:
    visitor = Visitor(studio.url)  # type: ignore[attr-defined]
    yield visitor
    visitor.close()


def test_only_the_app_that_is_served_is_built() -> None:
    with only_final_app(), gr.Blocks(analytics_enabled=False) as blocks:
        gr.Button("Press")
        assert blocks.app is None, "of Blocks.queue"
    assert blocks.app is None
    assert isinstance(App.create_app(blocks, mcp_server=False), App), "as before"


def paths_of(studio: Studio) -> set[tuple[str, str]]:
    pairs = {(method, path.replace("{api_name}", "generate")) for method, path in routes_of(studio.page.app)}  # type: ignore[attr-defined]
    return {(method, PARAMETER.sub("x", path)) for method, path in pairs}


def is_listed(method: str, path: str) -> bool:
    allowed = {
        PARAMETER.sub("x", path.replace("{api_name}", "generate"))
        for path, methods in GRADIO_ROUTES
        if method in methods
    }
    is_own = path in OWN_ROUTES or path.startswith(OWN_PREFIXES)
    return is_own or path in allowed or path.rstrip("/") in allowed or path.startswith("/gradio_api/mcp")


def test_routes_that_are_not_listed_answer_404(studio: Studio, visitor: Visitor) -> None:
    unlisted = sorted(one for one in paths_of(studio) if not is_listed(*one))
    assert len(unlisted) > 20
    assert ("POST", "/gradio_api/process_recording") in unlisted
    assert ("GET", "/gradio_api/deep_link") in unlisted
    for method, path in unlisted:
        files = {"video": ("v.mp4", b"x")} if method == "POST" else None
        for changed in (path, f"{path}/", path.replace("/gradio_api/", "/gradio_api//"), quote(path, safe="/%")):
            response = visitor.client.request(method, changed, files=files, follow_redirects=False)
            assert response.status_code in (404, 307), (method, changed)
            assert b"mp4" not in response.content


def test_listed_routes_are_found_with_and_without_a_slash(visitor: Visitor) -> None:
    for path in ("/", "/config", "/config/", "/gradio_api/info"):
        assert visitor.client.get(path, follow_redirects=True).status_code == 200, path
    assert visitor.client.post("/config").status_code == 404, "not with another method"


def test_every_listed_route_is_one_of_gradio(studio: Studio) -> None:
    existing = {path for _, path in paths_of(studio)}
    on_spaces = {"/login/huggingface", "/login/callback"}
    for path, _ in GRADIO_ROUTES:
        shown = PARAMETER.sub("x", path.replace("{api_name}", "generate"))
        assert shown in existing or path in on_spaces or path.startswith("/gradio_api/mcp"), path


def test_unknown_functions_answer_404(visitor: Visitor) -> None:
    for name in ("nope", "predict", "load_settings%00", "a/b"):
        for route in ("call", "call/v2", "run", "api"):
            if (route, name) in (("run", "predict"), ("api", "predict")):
                continue
            response = visitor.client.post(f"/gradio_api/{route}/{name}", json={"data": []})
            assert response.status_code == 404, (route, name)
    for body in ({"data": [], "fn_index": 10**6, "session_hash": "a"}, {"data": [], "session_hash": "a"}):
        assert visitor.client.post("/gradio_api/queue/join", json=body).status_code == 400
        assert visitor.client.post("/gradio_api/run/predict", json=body).status_code == 400
    response = visitor.client.post("/gradio_api/call/v2/generate", json={"no_parameter": 1})
    assert response.status_code == 400
    assert "parameters" in response.json()["error"]


# Bodies


def test_every_route_limits_its_body(studio: Studio, visitor: Visitor) -> None:
    posts = sorted(path for method, path in paths_of(studio) if method == "POST" and is_listed(method, path))
    posts = [path for path in posts if not path.startswith("/static-offline-docs")]  # files, which take no bodies
    assert len(posts) > 15
    for path in posts:
        limit = limit_of(path)
        if limit is None:
            assert path.startswith(tuple(prefix for prefix, size in LIMITS if size is None))
            limit = 20 * 2**20
        assert _declared(visitor.url, path, limit + 2) == 413, path
        if limit == DEFAULT_LIMIT:
            chunks = (b'{"data": ["' + b"x" * 2**19 for _ in range(6))
            response = visitor.client.post(path, content=chunks, headers={"content-type": "application/json"})
            assert response.status_code in (401, 404, 405, 413, 422), path  # or answered without reading it
    assert limit_of("/anything") == DEFAULT_LIMIT


def _declared(url: str, path: str, length: int) -> int:
    """The status of a request that only declares so long a body; 413 for a route that needs a key."""
    address = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.hostname or "", address.port or 0), timeout=20) as client:
        client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode())
        status = int(client.recv(4096).split()[1])
    return 413 if status == 401 else status


# Uploads


@pytest.mark.parametrize("disposition", DISPOSITIONS)
def test_files_are_counted_as_gradio_parses_them(studio: Studio, disposition: str) -> None:
    body = f"--b\r\nContent-Disposition: {disposition}\r\n\r\nhello\r\n--b--\r\n".encode()
    response = httpx.post(
        f"{studio.url}/gradio_api/upload",  # type: ignore[attr-defined]
        content=body,
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    stored = response.json() if response.status_code == 200 else []
    for size in (1, 7, len(body)):
        form = FormCounter("multipart/form-data; boundary=b")
        assert sum(form.feed(body[start : start + size]) for start in range(0, len(body), size)) == len(stored)
    assert len(stored) == 1 or disposition in DISPOSITIONS[-2:]


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("limited"), public=True, trusted_proxies=("127.0.0.1",)) as studio:
        yield studio.url  # type: ignore[attr-defined]


def test_many_files_with_unquoted_names_are_limited(limited: str) -> None:
    before = {path for path in Path(get_upload_folder()).rglob("*") if path.is_file()}
    parts = "".join(
        f"--b\r\nContent-Disposition: form-data; name=files; filename=f{n}\r\n\r\n{n}\r\n" for n in range(250)
    )
    headers = {"content-type": "multipart/form-data; boundary=b", "x-forwarded-for": "192.0.2.7"}
    response = httpx.post(f"{limited}/gradio_api/upload", content=f"{parts}--b--\r\n", headers=headers)
    assert response.status_code == 429
    assert {path for path in Path(get_upload_folder()).rglob("*") if path.is_file()} == before
    form = {"a": (None, "x" * (2 * 2**20))}
    response = httpx.post(f"{limited}/gradio_api/upload", files=form, headers={"x-forwarded-for": "192.0.2.8"})
    assert response.status_code == 413, "a field of a form is kept in memory"


def test_the_same_file_counts_once(limited: str) -> None:
    """The image editor uploads its image for every event."""
    with httpx.Client(base_url=limited, headers={"x-forwarded-for": "192.0.2.9"}) as client:
        for _ in range(210):
            assert client.post("/gradio_api/upload", files={"files": ("a.png", b"same")}).status_code == 200
        parts = [("files", (f"{number}.png", b"same")) for number in range(210)]
        assert client.post("/gradio_api/upload", files=parts).status_code == 429


# Images


def test_every_route_with_images_needs_the_login(tmp_path: Path) -> None:
    with serving(tmp_path, auth=("ann", "a long password")) as studio:
        image = save_image(studio, "ann")
        files = [studio.image_path(image.filename, thumbnail=small) for small in (False, True)]
        contents = [path.read_bytes()[-200:-100] for path in files]
        values = {image.filename, str(image.id), *map(str, files), quote(str(files[0]), safe="")}
        deadline, answers = time.monotonic() + 60, 0
        with httpx.Client(base_url=studio.url) as client:  # type: ignore[attr-defined]
            for method, path in sorted(routes_of(studio.page.app)):  # type: ignore[attr-defined]
                if method not in ("GET", "HEAD"):
                    continue
                for value in values if "{" in path else [""]:
                    with client.stream(method, PARAMETER.sub(lambda _, text=value: text, path)) as response:
                        content = (
                            next(response.iter_bytes(), b"")
                            if "event-stream" in str(response.headers)
                            else response.read()
                        )
                    answers += 1
                    assert not any(part in content for part in contents), path
                    assert "content-disposition" not in response.headers or response.status_code >= 400, path
                    assert time.monotonic() < deadline
            assert answers > 100
            for path in (f"/pictures/{image.filename}", f"/downloads/{image.filename}", "/export.zip"):
                assert client.get(path).status_code == 401
            client.post("/login", data={"username": "ann", "password": "a long password"})
            assert client.get(f"/downloads/{image.filename}").status_code == 200
