"""An OpenID provider's two documents on a real socket, and whatever a provider can do wrong with them.

The good provider of the tests is a real one (``openid_provider``); this one is for the bad days.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

DISCOVERY = "/.well-known/openid-configuration"
KEYS = "/keys"
AUDIENCE = "app"
SUBJECT = "anna"


@dataclass(frozen=True)
class SigningKey:
    """A provider's key: its entry in the key set, and what it signs with."""

    kid: str | None
    algorithm: str
    private_key: Any = field(repr=False)

    def entry(self, **changes: Any) -> dict[str, Any]:
        """Its public half as RFC 7517 writes it; a change to None leaves the member out."""
        algorithms = jwt.algorithms.get_default_algorithms()
        public = algorithms[self.algorithm].to_jwk(self.private_key.public_key(), as_dict=True)
        public.pop("key_ops", None)
        given = {**public, "kid": self.kid, "use": "sig", "alg": self.algorithm, **changes}
        return {name: value for name, value in given.items() if value is not None}

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A JWT of these claims; the header's ``kid`` is the key's own unless it is given."""
        return jwt.encode(
            claims,
            self.private_key,
            algorithm=self.algorithm,
            headers={**({"kid": self.kid} if self.kid else {}), **header},
        )


def new_key(algorithm: str = "ES256", kid: str | None = "key-1") -> SigningKey:
    """A fresh key."""
    made: dict[str, Callable[[], Any]] = {
        "RS": lambda: rsa.generate_private_key(65537, 2048),
        "PS": lambda: rsa.generate_private_key(65537, 2048),
        "ES": lambda: ec.generate_private_key(_CURVES[algorithm]()),
        "Ed": ed25519.Ed25519PrivateKey.generate,
    }
    return SigningKey(kid, algorithm, made[algorithm[:2]]())


_CURVES: dict[str, Any] = {"ES256": ec.SECP256R1, "ES384": ec.SECP384R1, "ES512": ec.SECP521R1}


@dataclass
class KeyServer:
    """The provider as it is asked; ``replies`` stands in for what a path answers normally."""

    issuer: str
    entries: list[dict[str, Any]] = field(default_factory=list)
    key_headers: dict[str, str] = field(default_factory=dict)
    replies: dict[str, Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=dict)
    asked: Counter[str] = field(default_factory=Counter)
    hold: threading.Event = field(default_factory=threading.Event)
    """Cleared, nothing is answered until it is set again."""

    def claims(self, **changes: Any) -> dict[str, Any]:
        """What a good ID token says now; a change to None leaves the claim out."""
        now = int(time.time())
        good = {"iss": self.issuer, "aud": AUDIENCE, "sub": SUBJECT, "iat": now, "exp": now + 600}
        return {name: value for name, value in {**good, **changes}.items() if value is not None}

    def discovery(self) -> dict[str, Any]:
        """The discovery document."""
        return {"issuer": self.issuer, "jwks_uri": self.issuer + KEYS}

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer a request."""
        self.asked[handler.path] += 1
        self.hold.wait(30)
        if handler.path in self.replies:
            self.replies[handler.path](handler)
        elif handler.path == DISCOVERY:
            send_json(handler, self.discovery())
        else:
            send_json(handler, {"keys": self.entries}, **self.key_headers)


def send(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    """A whole answer; ``_`` in a header's name stands for ``-``."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(content)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def send_json(handler: BaseHTTPRequestHandler, value: Any, **headers: str) -> None:
    """A whole answer in JSON."""
    send(handler, json.dumps(value).encode(), 200, **headers)


@contextmanager
def serving_keys(*keys: SigningKey) -> Iterator[KeyServer]:
    """A provider with these keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with contextlib.suppress(OSError):
                provider.answer(self)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    provider = KeyServer(f"http://127.0.0.1:{server.server_port}", [key.entry() for key in keys])
    provider.hold.set()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield provider
    finally:
        provider.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
