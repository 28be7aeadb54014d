"""Who may use the server: a check of the Host header, and an API key."""

import hashlib
import hmac
import re
from collections.abc import Awaitable, Sequence

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from gpt_core.common.errors import InputError
from serve.http.envelope import envelope

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
ANY_HOST = "*"
HEALTH_PATHS = {"/livez", "/readyz"}  # probes of container platforms send an address as Host, and no key
# A browser sends no key when it opens a page. These paths have nothing of the index or the models.
PAGE_PATHS = re.compile(r"/|/docs|/openapi\.json|/static/.*")
HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(:[0-9]*)?", re.IGNORECASE)


def check_hosts(names: Sequence[str]) -> frozenset[str]:
    """Host names for `AccessCheck`, in lower case.

    Raises:
        InputError: for a name with a scheme, port or path.
    """
    for name in names:
        match = HOST.fullmatch(name)
        if name != ANY_HOST and (match is None or match[2]):
            raise InputError(
                f"allowed_hosts has {name!r}; expected a name or address such as search.example.com, without scheme "
                "and port, or * for any."
            )
    return frozenset(name.lower() for name in names)


def hash_key(key: str) -> bytes:
    """sha256 of an API key.

    Raises:
        InputError: if the key cannot be sent in a header.
    """
    if not re.fullmatch("[!-~]+", key):
        raise InputError("The API key is empty or has spaces or letters beyond ASCII; choose another one.")
    return hashlib.sha256(key.encode()).digest()


class AccessCheck:
    """ASGI middleware that refuses other Host headers with 403, and requests without the API key with 401.

    The Host header is checked because of DNS rebinding: a web page whose name is made to resolve to 127.0.0.1 could
    otherwise read the index through the browser of the server's user.

    Args:
        app: the application.
        hosts: the accepted host names, with any port; "*" accepts all.
        key_sha256: hash of the key that requests must send as `Authorization: Bearer KEY`; None: no key is needed.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str], key_sha256: bytes | None) -> None:
        self.app = app
        self.hosts = hosts
        self.key_sha256 = key_sha256

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Check the headers before the body is read."""
        refusal = None
        if scope["type"] == "http" and scope["path"] not in HEALTH_PATHS:
            refusal = self._refusal(scope["path"], Headers(scope=scope))
        return (refusal or self.app)(scope, receive, send)

    def _refusal(self, path: str, headers: Headers) -> JSONResponse | None:
        host = HOST.fullmatch(headers.get("host", ""))
        if ANY_HOST not in self.hosts and (host is None or host[1].lower() not in self.hosts):
            body = envelope(
                f"This server does not answer to the host name {headers.get('host', '')!r}; start it with "
                "--allowed_hosts to allow a name.",
                "invalid_request_error",
                code="host_not_allowed",
            )
            return JSONResponse(body, 403)
        if self.key_sha256 is None or PAGE_PATHS.fullmatch(path):
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("latin-1")).digest()  # headers are decoded as latin-1
        if scheme.lower() == "bearer" and hmac.compare_digest(given, self.key_sha256):
            return None
        what = "The API key is wrong" if key else "This server needs an API key"
        body = envelope(
            f"{what}; send the header Authorization: Bearer KEY.",
            "invalid_request_error",
            code="invalid_api_key",
        )
        return JSONResponse(body, 401, {"WWW-Authenticate": "Bearer"})
