"""Puts the page, the routes and the studio together and serves them."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from canvas.server.auth import HINT, Login, LoginMiddleware, current_user
from canvas.server.identity import IdentityMiddleware
from canvas.server.rate_limits import UploadLimitMiddleware
from canvas.server.security import SecurityMiddleware
from canvas.server.share_link import ShareLink
from canvas.settings import Settings, configure_runtime_env
from canvas.studio import Studio

if TYPE_CHECKING:
    from gradio import Blocks
    from starlette.types import Scope

MAX_UPLOAD = 100 * 2**20  # bytes: a large photograph in PNG
WARM_UP_DELAY = 0.5  # seconds: the first page must not wait for the import of torch


def launch(studio: Studio, *, block: bool = True, quiet: bool = False) -> Blocks:
    """Serve a studio; with `block` until interrupted. The Blocks carry `local_url`."""
    configure_runtime_env()
    _configure_logging()
    from canvas.api.gradio_api import register_api
    from canvas.api.mcp import patch_mcp_server
    from canvas.api.rest import build_routes
    from canvas.server.discovery import write_server_file
    from canvas.ui.app import build_page, launch_options

    settings = studio.settings
    link = ShareLink() if settings.share else None
    with build_page(studio, link) as page:
        register_api(studio)
    inner_secret = secrets.token_urlsafe(32)
    login = Login(*settings.auth) if settings.auth else None
    if settings.zero_gpu:
        studio.warm_up(wait=True)  # ZeroGPU packs at launch what is on its "cuda" by then
    page.launch(
        server_name=settings.host,
        server_port=settings.port or free_port(),
        share=False,  # see _open_link
        auth=login,
        auth_message=HINT if login else None,
        i18n=page.i18n_instance,
        app_kwargs={
            "routes": build_routes(studio),
            "middleware": _build_middleware(studio, login, inner_secret),
        },
        mcp_server=True,
        enable_monitoring=False,
        run_history=False,  # it would keep prompts in the browser beyond "erase everything"
        max_file_size=MAX_UPLOAD,
        prevent_thread_lock=True,
        quiet=quiet,
        **launch_options(),
    )
    if login:
        page.app.tokens = login.sessions  # launching made a dict, where logins never end
    patch_mcp_server(page, inner_secret)
    write_server_file(settings.data_dir, page.local_url or "")
    if not settings.zero_gpu:
        warm_up = threading.Timer(WARM_UP_DELAY, studio.warm_up)
        warm_up.daemon = True
        warm_up.start()
    if link:
        threading.Thread(target=_open_share_tunnel, args=(link, page), daemon=True).start()
    if block:
        page.block_thread()
    return page


def free_port() -> int:
    """A port that nobody listens on.

    What Gradio finds by itself another program may take meanwhile, and then it waits for ever.
    """
    with socket.create_server(("", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def main(arguments: list[str] | None = None) -> None:
    """Serve with the settings of the environment and the command line."""
    with Studio(Settings.from_command_line(arguments)) as studio:
        launch(studio)


def _build_middleware(studio: Studio, login: Login | None, inner_secret: str) -> list[Middleware]:
    from canvas.server.api_keys import api_key_middleware

    settings = studio.settings
    doors = Middleware(
        SecurityMiddleware,
        hosts=None if settings.requires_api_key else settings.trusted_hosts,
        outputs=settings.outputs_dir,
        is_stored_image=studio.is_stored_image,
    )
    identity = Middleware(
        IdentityMiddleware,
        public=settings.is_public,
        get_login=current_user if login else None,
        get_hf_account=_hugging_face_account if settings.sign_in else None,
    )
    pauses = [Middleware(LoginMiddleware, failures=login.failures)] if login else []
    uploads = Middleware(UploadLimitMiddleware, public=settings.is_public)
    return [doors, *pauses, uploads, identity, api_key_middleware(studio, inner_secret)]


def _open_share_tunnel(link: ShareLink, page: Blocks) -> None:
    """Have Gradio open its tunnel, while the page is up already, and say what came of it.

    `launch(share=True)` would hold the page up for as long, and serve it with scripts of
    another host.
    """
    from gradio.exceptions import ChecksumMismatchError
    from gradio.networking import GRADIO_SHARE_SERVER_ADDRESS, setup_tunnel
    from httpx import HTTPError

    try:
        address = setup_tunnel(page.server_name, page.server_port, page.share_token, None, None)
    except ChecksumMismatchError:
        link.failed("the program that opens it arrived damaged; try again.")
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0].rstrip(".")
        link.failed(f"{why}. Is there a connection to the internet?")
    else:
        # Gradio's own server has a certificate, though its client says http
        own = GRADIO_SHARE_SERVER_ADDRESS is not None
        link.opened(address if own else "https://" + address.partition("://")[2])
    logging.getLogger(__name__).info("%s", link.terminal_text(page.local_url or ""))


def _hugging_face_account(scope: Scope) -> str | None:
    # Gradio keeps the sign-in in its signed session; `sub` stays when a name changes hands.
    known = scope.get("session", {}).get("oauth_info")
    if known is None or known.get("expires_at", 0) < time.time():
        return None
    return f"hf-{known['userinfo']['sub']}"


def _configure_logging() -> None:
    log = logging.getLogger("canvas")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
