"""Request bodies: small JSON ones, checked; and the stream of an upload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from broker.api.services import services
from broker.errors import (
    ClientLeft,
    ClientTooSlow,
    InvalidRequest,
    MalformedRequest,
    TooLarge,
    UnsupportedMediaType,
)
from broker.transfer.multipart import media_type

MAX_JSON_BYTES = 16_384

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


async def read_json(request: Request, model: type[Model]) -> Model:
    """The body as ``model``. Raises a refusal that names every field that is wrong."""
    if media_type(request.headers.get("content-type", "")) != "application/json":
        raise UnsupportedMediaType("Send JSON, with 'Content-Type: application/json'.")
    try:
        async with asyncio.timeout(services(request).settings.broker_client_idle_seconds):
            content = await _read(request)
    except TimeoutError:
        raise ClientTooSlow from None
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        raise _refusal(error) from None


async def _read(request: Request) -> bytes:
    content = b""
    async for chunk in stream(request):
        content += chunk
        if len(content) > MAX_JSON_BYTES:
            raise TooLarge(f"The JSON body has more than {MAX_JSON_BYTES:,} bytes.")
    return content


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
