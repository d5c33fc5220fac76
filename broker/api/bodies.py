"""Request bodies: small JSON ones, checked; and the stream of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from broker.api.services import services
from broker.auth.body_digests import check_body
from broker.errors import (
    ClientLeft,
    ClientTooSlow,
    InvalidRequest,
    MalformedRequest,
    TooLarge,
    UnsupportedMediaType,
)
from broker.transfer.multipart import media_type

MAX_SMALL_BYTES = 16_384

Model = TypeVar("Model", bound=BaseModel)


async def stream(request: Request, received: Callable[[int], None] | None = None) -> AsyncIterator[bytes]:
    """The body as it comes; ``received`` is told the size of every piece.

    Raises :class:`ClientLeft` when it ends before its time.
    """
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        more = message.get("more_body", False)
        if chunk := message.get("body"):
            if received is not None and more:  # the last piece is never too late: nothing is waited for
                received(len(chunk))
            yield chunk


def has_body(request: Request) -> bool:
    """Whether anything was sent with the request, be it empty."""
    return bool(request.scope["state"]["body"].is_there)


def read_query(request: Request, model: type[Model]) -> Model:
    """The query as ``model``. Raises a refusal that names every parameter that is wrong."""
    names = [name for name, _ in request.query_params.multi_items()]
    twice = {name[:40] for name in names if names.count(name) > 1}
    if twice:
        raise InvalidRequest(f"{', '.join(sorted(twice))}: given more than once.")
    try:
        return model.model_validate(dict(request.query_params))
    except ValidationError as error:
        raise _refusal(error) from None


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as ``model``. Raises a refusal that names every field that is wrong."""
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise UnsupportedMediaType("Send JSON, with 'Content-Type: application/json'.")
    content = await read_small(request)
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(error) from None


async def read_small(request: Request) -> bytes:
    """The whole body. Raises :class:`TooLarge` over ``MAX_SMALL_BYTES``, :class:`ClientTooSlow`, and
    :class:`InvalidSignature` when it is not what the request was signed with.
    """
    try:
        async with asyncio.timeout(services(request).settings.broker_client_idle_seconds):
            return await _read(request)
    except TimeoutError:
        raise ClientTooSlow from None


async def _read(request: Request) -> bytes:
    content = b""
    async for chunk in stream(request):
        content += chunk
        if len(content) > MAX_SMALL_BYTES:
            raise TooLarge(f"The body has more than {MAX_SMALL_BYTES:,} bytes.")
    signed_sha256 = body_sha256_of(request)
    if signed_sha256 is not None:
        check_body(content, signed_sha256)
    return content


def body_sha256_of(request: Request) -> bytes | None:
    """What the body must be by its request's signature; None for a request that is not signed."""
    sha256: bytes | None = getattr(request.state, "body_sha256", None)
    return sha256


def _refusal(error: ValidationError) -> MalformedRequest | InvalidRequest:
    problems: list[Any] = error.errors(include_url=False, include_input=False, include_context=False)
    if any(problem["type"] == "json_invalid" for problem in problems):
        return MalformedRequest("The body is not valid JSON.")
    return InvalidRequest(
        " ".join(f"{_place(problem['loc'])}: {problem['msg']}." for problem in problems[:10])
    )


def _place(location: tuple[str | int, ...]) -> str:
    """A field's name; not one that the caller made up, which may be of any length."""
    return ".".join(str(part)[:40] for part in location) or "body"
