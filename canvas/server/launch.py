"""Builds the page, the routes and the middleware over a studio, and serves them."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from typing import TYPE_CHECKING

from starlette.middleware import Middleware

from canvas.engine import configure_process
from canvas.server.api_keys import ApiKeyMiddleware
from canvas.server.auth import LOGIN_HINT, Login, LoginThrottleMiddleware, current_user, use_sessions
from canvas.server.discovery import write_server_file
from canvas.server.identity import IdentityMiddleware, hugging_face_account
from canvas.server.rate_limits import UploadLimitMiddleware
from canvas.server.security import security_middleware
from canvas.server.share_link import ShareLink, open_share_link
from canvas.settings import Settings
from canvas.studio import Studio

if TYPE_CHECKING:
    from gradio import Blocks

MAX_UPLOAD = 100 * 2**20  # bytes: a large photograph in PNG
WARM_UP_DELAY = 0.5  # seconds, so that importing torch does not delay the first page


def launch(studio: Studio, *, block: bool = True, quiet: bool = False) -> Blocks:
    """Serve a studio; with `block` until interrupted. The Blocks have the `local_url`."""
    configure_process()
    _configure_logging()
    from canvas.api.gradio_api import register_api
    from canvas.api.mcp import patch_mcp_server
    from canvas.api.rest import build_routes
    from canvas.ui.app import build_page, launch_options

    settings = studio.settings
    link = ShareLink() if settings.share else None
    with build_page(studio, link) as page:
        register_api(studio)
    internal_token = secrets.token_urlsafe(32)
    login = Login(*settings.auth) if settings.auth else None
    if settings.zero_gpu:
        studio.warm_up(wait=True)  # ZeroGPU packs the models that are on "cuda" at launch
    page.launch(
        server_name=settings.host,
        server_port=settings.port or free_port(),
        share=False,  # see open_share_link
        auth=login,
        auth_message=LOGIN_HINT if login else None,
        i18n=page.i18n_instance,
        app_kwargs={"routes": build_routes(studio), "middleware": _build_middleware(studio, login, internal_token)},
        mcp_server=True,
        enable_monitoring=False,
        run_history=False,  # it keeps prompts in the browser, where we cannot delete them
        max_file_size=MAX_UPLOAD,
        prevent_thread_lock=True,
        quiet=quiet,
        **launch_options(),
    )
    if login:
        use_sessions(page, login.sessions)
    patch_mcp_server(page, internal_token)
    write_server_file(settings.data_dir, page.local_url or "")
    if not settings.zero_gpu:
        warm_up = threading.Timer(WARM_UP_DELAY, studio.warm_up)
        warm_up.daemon = True
        warm_up.start()
    if link:
        threading.Thread(target=open_share_link, args=(link, page), daemon=True).start()
    if block:
        page.block_thread()
    return page


def free_port() -> int:
    """A free port. Gradio's own search can hang if another program takes the port meanwhile."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
    return port


def main(arguments: list[str] | None = None) -> None:
    """Serve with the settings of the environment and the command line."""
    configure_process()  # before the studio starts threads
    with Studio(Settings.from_command_line(arguments)) as studio:
        launch(studio)


def _build_middleware(studio: Studio, login: Login | None, internal_token: str) -> list[Middleware]:
    settings = studio.settings
    hosts = None if settings.requires_api_key else settings.trusted_hosts
    throttle = [Middleware(LoginThrottleMiddleware, throttle=login.throttle)] if login else []
    return [
        *security_middleware(hosts, settings.outputs_dir, studio.is_stored_image),
        *throttle,
        Middleware(UploadLimitMiddleware, public=settings.is_public),
        Middleware(
            IdentityMiddleware,
            public=settings.is_public,
            get_login=current_user if login else None,
            get_hf_account=hugging_face_account if settings.sign_in else None,
        ),
        Middleware(
            ApiKeyMiddleware,
            api_keys=studio.api_keys,
            required=settings.requires_api_key,
            login_required=login is not None,
            internal_token=internal_token,
        ),
    ]


def _configure_logging() -> None:
    log = logging.getLogger("canvas")
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)
