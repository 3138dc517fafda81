"""A local OpenID provider in place of Hugging Face's sign-in."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey


class Provider:
    """Serves on a free port and signs everyone in as `person` (claims of the id token)."""

    def __init__(self, client_id: str, person: dict[str, str]) -> None:
        self.client_id = client_id
        self.person = person
        self.nonces: dict[str, str] = {}  # by authorization code
        self.key = RSAKey.generate_key(2048, {"kid": "one"})
        handler = type("Handler", (_Handler,), {"provider": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def token(self, code: str) -> dict[str, Any]:
        """The token response for an authorization code."""
        now = int(time.time())
        claims = {"iss": self.url, "aud": self.client_id, "iat": now, "exp": now + 3600}
        claims |= {"nonce": self.nonces.pop(code), **self.person}
        id_token = jwt.encode({"alg": "RS256", "kid": "one"}, claims, self.key)
        return {"access_token": "none", "token_type": "bearer", "expires_in": 3600, "id_token": id_token}

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    provider: Provider

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def do_GET(self) -> None:
        url, issuer = urlsplit(self.path), self.provider.url
        if url.path == "/.well-known/openid-configuration":
            self._send_json(
                {
                    "issuer": issuer,
                    "authorization_endpoint": f"{issuer}/authorize",
                    "token_endpoint": f"{issuer}/token",
                    "jwks_uri": f"{issuer}/keys",
                }
            )
        elif url.path == "/keys":
            self._send_json({"keys": [self.provider.key.as_dict(private=False)]})
        else:
            self._authorize({name: values[0] for name, values in parse_qs(url.query).items()})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._send_json(self.provider.token(parse_qs(body)["code"][0]))

    def _authorize(self, params: dict[str, str]) -> None:
        code = f"code {len(self.provider.nonces)}"
        self.provider.nonces[code] = params["nonce"]
        query = urlencode({"code": code, "state": params["state"]})
        separator = "&" if "?" in params["redirect_uri"] else "?"
        self.send_response(302)
        self.send_header("Location", f"{params['redirect_uri']}{separator}{query}")
        self.end_headers()

    def _send_json(self, value: Any) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())
