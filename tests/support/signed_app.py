"""A server in a process of its own that takes signed requests, as many of them as a test wants side by side.

``python -m tests.support.signed_app DATABASE_URL PUBLIC_URL``: prints its address, then answers who signed a
request and what its body was; secrets come as JSON on standard input, ``{key_id: [secret, …]}``.
"""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from broker.auth.body_digests import BodyDigest
from broker.auth.signatures import SignedRequests
from broker.errors import Refusal
from broker.state.claims import DatabaseClaims
from broker.state.database import Database


class Secrets(dict[str, list[str]]):
    """The signing secrets of some keys."""

    async def signing_secrets(self, key_id: str) -> list[bytes]:
        return [secret.encode() for secret in self.get(key_id, ())]


def make_app(signatures: SignedRequests) -> Starlette:
    async def show(request: Request) -> JSONResponse:
        asked = (request.method, request.scope["raw_path"], request.scope["query_string"])
        signed = await signatures.verify(*asked, request.headers)
        digest, size = hashlib.sha256(), 0
        if signed.body_sha256 is not None:
            async for piece in BodyDigest(aiter(request.stream()), signed.body_sha256):
                digest.update(piece)
                size += len(piece)
        return JSONResponse({"key_id": signed.key_id, "bytes": size, "sha256": digest.hexdigest()})

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Refusal)
        return JSONResponse({"code": error.code, "log": error.log}, error.status)

    return Starlette(
        routes=[Route("/{path:path}", show, methods=["GET", "POST", "PUT"])],
        exception_handlers={Refusal: refuse},
    )


def main(database_url: str, public_url: str) -> None:
    secrets = Secrets(json.loads(sys.stdin.readline()))
    claims = DatabaseClaims(Database(database_url))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sys.stdout.write(f"http://127.0.0.1:{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        app = make_app(SignedRequests(secrets, claims, public_url))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
        server.run(sockets=[listener])


@contextmanager
def running_signed_app(
    database_url: str, secrets: dict[str, list[str]], public_url: str = "http://127.0.0.1:2026"
) -> Iterator[str]:
    """The address of such a server. The database must have its tables."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.signed_app", database_url, public_url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(secrets) + "\n")
        process.stdin.flush()
        address = process.stdout.readline().strip()
        assert address, "the server did not start"
        yield address
    finally:
        process.terminate()
        process.wait(10)
        process.stdin.close()
        process.stdout.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
