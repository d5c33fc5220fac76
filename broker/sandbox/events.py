"""One record a request, filled along the way; no credential enters it."""

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope

KINDS = {
    "/api/permission/oauth2/token": "token",
    "/v1/files/upload": "upload",
    "/v1/files/retrieve": "retrieve",
}

# Values that cannot be credentials. Of every other header only the name is kept.
SAFE_HEADERS = frozenset(
    {"accept", "accept-encoding", "connection", "content-length", "content-type", "expect", "host", "origin"}
    | {"agw-js-conv", "transfer-encoding", "user-agent", "via", "x-coze-client-user-agent"}
    | {
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
        "access-control-request-headers",
    }
)


@dataclass
class Event:
    """`outcome` starts as open and ends as issued, stored, found, refused, aborted, faulted or answered."""

    kind: str
    method: str
    path: str
    at: float
    logid: str
    query_names: list[str]
    header_names: list[str]
    headers: dict[str, str]
    content_length: int | None
    chunked: bool
    outcome: str = "open"
    status: int | None = None
    code: int | str | None = None
    body_bytes: int = 0
    part_names: list[str] = field(default_factory=list)
    file_name: str | None = None
    file_bytes: int | None = None
    file_id: str | None = None
    sha256: str | None = None
    token_kind: str | None = None
    client_id: str | None = None
    duration_seconds: int | None = None
    fault: dict[str, Any] | None = None

    def settle(self, outcome: str) -> None:
        """The first outcome stands: a client that leaves after a refusal has still been refused."""
        if self.outcome == "open":
            self.outcome = outcome

    def fill(self, **facts: object) -> None:
        for name, value in facts.items():
            setattr(self, name, value)


class EventLog:
    def __init__(self, capacity: int) -> None:
        self._events: deque[Event] = deque(maxlen=capacity)

    def add(self, event: Event) -> None:
        self._events.append(event)

    def clear(self) -> None:
        self._events.clear()

    def listing(self) -> list[dict[str, object]]:
        return [asdict(event) for event in self._events]


def new_event(scope: Scope, *, at: float, logid: str) -> Event:
    headers = Headers(scope=scope)
    return Event(
        kind=KINDS.get(scope["path"], "other"),
        method=scope["method"],
        path=scope["path"],
        at=at,
        logid=logid,
        query_names=list(Request(scope).query_params),
        header_names=[name.decode("latin-1") for name, _ in scope["headers"]],
        headers={name: value for name, value in headers.items() if name in SAFE_HEADERS},
        content_length=_content_length(headers),
        chunked="chunked" in headers.get("transfer-encoding", "").lower(),
    )


def event_of(scope: Scope) -> Event:
    event: Event = scope["state"]["event"]
    return event


def _content_length(headers: Mapping[str, str]) -> int | None:
    value = headers.get("content-length", "")
    return int(value) if value.isdecimal() else None
