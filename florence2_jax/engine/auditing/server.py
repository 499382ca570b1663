# SPDX-License-Identifier: Apache-2.0
"""The audit page's server: the standard library's, on this machine's own address.

What it gives away without the token is the empty page, its script and its style. Everything else
is a POST of JSON that must carry the token, come from the page itself (`Origin`), and name this
server (`Host`), so that no other site in the same browser can ask for it. It speaks no TLS: to use
it from elsewhere, forward the port by ssh.
"""

import hmac
import http
import http.server
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from florence2_jax.engine.auditing.desk import Desk, RequestError
from florence2_jax.engine.auditing.queue import SamplingConfig
from florence2_jax.typing import UserError
from florence2_jax.viewing.audit_page import PAGE, SCRIPT, STYLE_SHEET

MAX_BODY = 64 * 1024
"""Bytes of a request."""

LOOPBACK = ("127.0.0.1", "localhost")

_TIMEOUT_S = 30
_STATIC = {
    "/": ("text/html; charset=utf-8", PAGE),
    "/audit.js": ("text/javascript; charset=utf-8", SCRIPT),
    "/audit.css": ("text/css; charset=utf-8", STYLE_SHEET),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_REQUESTS: Mapping[str, Callable[[Desk, Mapping[str, Any]], dict[str, Any]]] = {
    "/api/next": Desk.next,
    "/api/skip": Desk.skip,
    "/api/keep": Desk.keep,
    "/api/verdict": Desk.verdict,
    "/api/image": Desk.image,
}

_log = logging.getLogger(__name__)


class AuditServer(ThreadingHTTPServer):
    """Serves the page of a workdir; `url` is what to open. Call `serve_forever`.

    Args:
        directory: workdir of the engine, with a frozen split.
        host: address to listen on.
        port: 0 for any that is free.
        config: what is asked about first.

    Raises:
        UserError: if nothing was frozen, or the address cannot be used.
    """

    daemon_threads = True

    def __init__(
        self,
        directory: Path,
        *,
        host: str = LOOPBACK[0],
        port: int = 0,
        config: SamplingConfig = SamplingConfig(),
    ):
        self.desk = Desk(directory, config)
        self.token = secrets.token_urlsafe(32)
        self.names = {host, *LOOPBACK}
        if host not in LOOPBACK:
            self.names.add(socket.gethostname())
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--host {host} --port {port}: cannot listen there ({error})"
            ) from error

    @property
    def url(self) -> str:
        """The address of the page with its token, which browsers keep to themselves."""
        host, port = self.server_address[:2]
        return f"http://{host}:{port}/#{self.token}"


class _Handler(BaseHTTPRequestHandler):
    server: AuditServer  # pyright: ignore[reportIncompatibleVariableOverride]
    timeout = _TIMEOUT_S
    server_version, sys_version = "florence2-jax", ""

    def do_GET(self) -> None:
        if not self._is_ours():
            return
        if self.path not in _STATIC:
            self._refuse(http.HTTPStatus.NOT_FOUND, "no such page")
            return
        kind, text = _STATIC[self.path]
        self._answer(http.HTTPStatus.OK, kind, text.encode())

    def do_POST(self) -> None:
        if not (self._is_ours() and self._has_token()):
            return
        handle = _REQUESTS.get(self.path)
        if handle is None:
            self._refuse(http.HTTPStatus.NOT_FOUND, "no such request")
            return
        request = self._request()
        if request is None:
            return
        try:
            answer = handle(self.server.desk, request)
        except RequestError as error:
            self._refuse(http.HTTPStatus.BAD_REQUEST, str(error))
        except OSError as error:  # A full disk: the page keeps the verdict and says so.
            _log.error("the audit cannot write: %s", error)
            self._refuse(http.HTTPStatus.INSUFFICIENT_STORAGE, f"not kept: {error.strerror}")
        else:
            self._answer_json(http.HTTPStatus.OK, answer)

    def _is_ours(self) -> bool:
        """Whether the request names this server, and comes from its page or from no page."""
        port = self.server.server_address[1]
        here = {f"{name}:{port}" for name in (*self.server.names, self.connection.getsockname()[0])}
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        if host in here and origin in (None, f"http://{host}"):
            return True
        self._refuse(http.HTTPStatus.FORBIDDEN, "a request for another server, or of another page")
        return False

    def _has_token(self) -> bool:
        given = self.headers.get("X-Audit-Token", "")
        if hmac.compare_digest(given.encode("utf-8", "replace"), self.server.token.encode()):
            return True
        self._refuse(http.HTTPStatus.FORBIDDEN, "wrong token: open the address that was printed")
        return False

    def _request(self) -> dict[str, Any] | None:
        """The body, None after refusing it."""
        if self.headers.get_content_type() != "application/json":
            self._refuse(http.HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "send JSON")
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            text = f"send a length of at most {MAX_BODY} bytes"
            self._refuse(http.HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
            return None
        try:
            request = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            request = None
        if not isinstance(request, dict):
            self._refuse(http.HTTPStatus.BAD_REQUEST, "send a JSON object")
            return None
        return request

    def _refuse(self, status: http.HTTPStatus, reason: str) -> None:
        self._answer_json(status, {"error": reason})

    def _answer_json(self, status: http.HTTPStatus, value: dict[str, Any]) -> None:
        text = json.dumps(value, ensure_ascii=True)  # Lone surrogates stay JSON escapes.
        self._answer(status, "application/json", text.encode())

    def _answer(self, status: http.HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        _log.debug(format, *args)
