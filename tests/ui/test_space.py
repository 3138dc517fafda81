"""The program in the environment of a Space, with read-only home and program folders."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import itsdangerous
import pytest
from playwright.sync_api import Browser, Page, expect

from canvas.cli.deploy_space import ROOT, collect_files
from tests.oidc import Provider
from tests.ui.conftest import TIMEOUT

MEMORY = 16 * 2**30  # bytes: what a free Space has
SECRET = "the Space's own"  # noqa: S105 - for this test only
HOST = "https://ann-canvas.hf.space"
OAUTH = {"OAUTH_CLIENT_ID": "canvas", "OAUTH_CLIENT_SECRET": SECRET, "OAUTH_SCOPES": "openid profile"}
# Root can write everywhere unless it drops its capabilities
DROP_CAPABILITIES = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@dataclass
class Space:
    """A running Space: its URL, the program folder, and the data folder."""

    address: str
    app: Path
    data_dir: Path


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files that `deploy` uploads, read-only."""
    folder = tmp_path_factory.mktemp("space") / "app"
    for file in collect_files():
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file.path, folder / file.path)
    everything = [folder, *folder.rglob("*")]
    for path in everything:
        path.chmod(0o555)
    yield folder
    for path in everything:
        path.chmod(0o755)


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    person = {"sub": "number of ann", "preferred_username": "ann", "name": "Ann"}
    provider = Provider("canvas", person)
    yield provider
    provider.close()


@pytest.fixture(scope="module", params=["with a bucket", pytest.param("without", marks=pytest.mark.long)])
def space(
    request: pytest.FixtureRequest, app: Path, provider: Provider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Space]:
    folder = tmp_path_factory.mktemp("container")
    for name in ("home", "tmp", "data"):
        (folder / name).mkdir()
    (folder / "home").chmod(0o555)
    persistent = request.param == "with a bucket"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "SYSTEM": "spaces",
        "SPACE_ID": "ann/canvas",
        "SPACE_HOST": HOST.removeprefix("https://"),
        "SPACE_AUTHOR_NAME": "ann",
        "CANVAS_BUCKET": str(folder / "data") if persistent else "/nowhere",
        "CANVAS_PORT": str(port),
        "CANVAS_DTYPE": "float32",
        "PYTHONDONTWRITEBYTECODE": "1",
        **({**OAUTH, "OPENID_PROVIDER_URL": provider.url} if persistent else {}),
    }
    python = os.environ.get("SPACE_PYTHON", sys.executable)
    command = [*(DROP_CAPABILITIES if os.geteuid() == 0 else []), python, "app.py"]
    with (
        open(folder / "log", "wb") as log,
        subprocess.Popen(
            command,
            cwd=app,
            env=environ,
            stdout=log,
            stderr=log,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY)),  # noqa: PLW1509 - this process has no threads that matter
        ) as child,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            while not is_ready(address):
                assert child.poll() is None, (folder / "log").read_text()
            data_dir = folder / "data" if persistent else folder / "tmp" / "magic-canvas"
            yield Space(address, app, data_dir)
        finally:
            child.terminate()


def is_ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/healthz", timeout=30).is_success
    except httpx.ConnectError:
        return False


def visit(browser: Browser, space: Space, account: str = "", session: str = "") -> Page:
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT)
    expect.set_options(timeout=TIMEOUT)
    if account or session:
        value = session or session_of(account)
        cookie = {"name": "session", "value": value, "url": space.address}
        context.add_cookies([cookie])  # type: ignore[list-item]
    page = context.new_page()
    page.goto(space.address)
    return page


def session_of(account: str) -> str:
    """The session cookie of Gradio for an account that has signed in with Hugging Face."""
    info = {
        "access_token": "none",
        "expires_at": int(time.time()) + 3600,
        "userinfo": {"sub": f"number of {account}", "preferred_username": account},
    }
    data = base64.b64encode(json.dumps({"oauth_info": info}).encode())
    key = hashlib.sha256(f"{SECRET}-v4".encode()).hexdigest()
    return itsdangerous.TimestampSigner(key).sign(data).decode()


def generate(page: Page, prompt: str) -> None:
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".result-images .result-details .prompt")).to_have_text(prompt)


def test_it_generates_and_stores_in_the_data_folder(space: Space, browser: Browser) -> None:
    page = visit(browser, space)
    generate(page, "a fox in the snow, 3d")
    assert (space.data_dir / "ai_images.db").is_file()
    assert len(list(space.data_dir.glob("outputs/*/*.png"))) == 1
    persistent = space.data_dir.name == "data"
    notice = page.get_by_text("This Space has no persistent storage")
    if persistent:
        expect(notice).to_have_count(0)
    else:
        expect(notice).to_be_visible()
    page.get_by_role("tab", name="Models").click()
    expect(page.locator(".model").nth(1)).to_contain_text("not on this server")
    page.context.close()
    writable = [path for path in space.app.rglob("*") if path.stat().st_mode & stat.S_IWUSR]
    assert writable == [], "nothing was written to the program folder"


def test_another_visitor_sees_no_images(space: Space, browser: Browser) -> None:
    page = visit(browser, space)
    expect(page.locator("#current-result")).to_contain_text("What would you like to create?")
    page.context.close()


def test_signed_in_users_see_their_images_on_another_device(space: Space, browser: Browser) -> None:
    if space.data_dir.name != "data":
        assert httpx.get(f"{space.address}/login/huggingface").status_code == 404
        return
    mine = visit(browser, space, "ann")
    expect(mine.get_by_role("button", name="Sign out ann")).to_be_visible()
    generate(mine, "a red boat")
    other_device = visit(browser, space, "ann")
    expect(other_device.locator(".result-images .result-details .prompt")).to_have_text("a red boat")
    other = visit(browser, space, "bob")
    expect(other.locator("#current-result")).to_contain_text("What would you like to create?")
    nobody = visit(browser, space)
    expect(nobody.get_by_role("button", name="Sign in")).to_be_visible()
    expect(nobody.locator("#current-result")).to_contain_text("What would you like to create?")
    for page in (mine, other_device, other, nobody):
        page.context.close()


def sign_in(space: Space) -> str:
    """The session cookie after following every redirect of the sign-in."""
    session, address = "", f"{space.address}/login/huggingface"
    while True:
        url = address.replace(HOST, space.address)
        headers = {"Cookie": f"session={session}"} if url.startswith(space.address) else {}
        response = httpx.get(url, headers=headers, timeout=30)
        session = response.cookies.get("session") or session
        if not response.is_redirect:
            assert response.is_success, response.text
            return session
        address = str(response.url.join(response.headers["location"]))


def test_sign_in_redirects_to_the_provider_and_back(space: Space, browser: Browser) -> None:
    if space.data_dir.name != "data":
        return  # no sign-in there
    page = visit(browser, space, session=sign_in(space))
    expect(page.get_by_role("button", name="Sign out ann")).to_be_visible()
    expect(page.locator(".result-images .result-details .prompt")).to_have_text("a red boat")
    page.context.close()


@pytest.mark.slow
def test_the_cookie_works_in_a_frame_of_another_site(space: Space) -> None:
    response = httpx.get(space.address, headers={"X-Forwarded-Proto": "https"})
    [cookie] = [cookie for cookie in response.headers.get_list("set-cookie") if "visitor" in cookie]
    assert "Secure; SameSite=None; Partitioned" in cookie
