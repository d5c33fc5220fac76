"""Misbehaviour on order: what an answer is to be spoiled with, and for how many requests."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

CONTROL_PREFIX = "/_sandbox/"


class Fault(BaseModel):
    """With `status`, `code`, `html` or `redirect` the answer is the fault's own and nothing is stored;
    without them the request is handled as usual and its answer is spoiled on the way out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = None
    times: Annotated[int, Field(ge=1)] | None = None
    status: Annotated[int, Field(ge=200, le=599)] | None = None
    code: int | str | None = None
    msg: str = "fault ordered through /_sandbox/faults"
    headers: dict[str, str] = {}
    html: bool = False
    redirect: str | None = None
    delay_seconds: Annotated[float, Field(ge=0, le=3600)] = 0
    before_body: bool = False
    abort_after_bytes: Annotated[int, Field(ge=0)] | None = None
    abort_answer: bool = False
    truncate: bool = False
    half_json: bool = False
    oversize_bytes: Annotated[int, Field(ge=0, le=2**33)] = 0
    never_answer: bool = False
    cors: bool = True

    @model_validator(mode="after")
    def _answers_before_body(self) -> "Fault":
        if self.before_body and not (self.replaces_answer or self.never_answer):
            raise ValueError("before_body needs status, code, html, redirect or never_answer")
        return self

    @property
    def replaces_answer(self) -> bool:
        return self.html or any(each is not None for each in (self.status, self.code, self.redirect))

    def concerns(self, path: str) -> bool:
        return self.path in (None, path) and not path.startswith(CONTROL_PREFIX)

    def summary(self) -> dict[str, Any]:
        return self.model_dump(exclude_defaults=True)


def parse(body: bytes) -> list[Fault]:
    """One fault, or a list of them to be used up in that order."""
    orders = TypeAdapter(Fault | list[Fault]).validate_json(body)
    return orders if isinstance(orders, list) else [orders]


class Faults:
    """The faults still to come; the first that concerns a path is used."""

    def __init__(self) -> None:
        self._pending: list[tuple[Fault, int | None]] = []

    def order(self, faults: list[Fault]) -> None:
        self._pending = [(fault, fault.times) for fault in faults]

    def peek(self, path: str) -> Fault | None:
        return next((fault for fault, _ in self._pending if fault.concerns(path)), None)

    def take(self, path: str) -> Fault | None:
        for index, (fault, left) in enumerate(self._pending):
            if fault.concerns(path):
                self._use(index, fault, left)
                return fault
        return None

    def listing(self) -> list[dict[str, Any]]:
        return [fault.summary() | {"times_left": left} for fault, left in self._pending]

    def _use(self, index: int, fault: Fault, left: int | None) -> None:
        if left == 1:
            del self._pending[index]
        elif left is not None:
            self._pending[index] = (fault, left - 1)
