"""The breaker decides by what it is told, and by the clock that it is given."""

from __future__ import annotations

import pytest

from broker.errors import (
    ClientLeft,
    FileContentMismatch,
    FinishDeadline,
    NotFound,
    OutcomeUnknown,
    Refusal,
    Reply,
    TooLarge,
    UpstreamAborted,
    UpstreamBadAnswer,
    UpstreamBusy,
    UpstreamCredentialRefused,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from broker.upstream.answers import asks_for_less, is_of_credential, outcome_of
from broker.upstream.breaker import PROBES, Breaker, Change, Outcome, Ticket
from tests.support.clock import Clock

OPEN_SECONDS = 10.0


@pytest.fixture
def changes() -> list[Change]:
    return []


@pytest.fixture
def breaker(clock: Clock, changes: list[Change]) -> Breaker:
    return Breaker("coze", failures=3, open_seconds=OPEN_SECONDS, now=clock, on_change=changes.append)


def enter(breaker: Breaker) -> Ticket:
    ticket = breaker.enter()
    assert isinstance(ticket, Ticket)
    return ticket


def call(breaker: Breaker, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        breaker.leave(enter(breaker), outcome, "why")


def opened(breaker: Breaker) -> Breaker:
    call(breaker, "failure", "failure", "failure")
    assert breaker.state == "open"
    return breaker


def half_opened(breaker: Breaker, clock: Clock) -> Breaker:
    opened(breaker)
    clock.now += OPEN_SECONDS
    assert breaker.state == "half-open"
    return breaker


def test_so_many_failures_in_a_row_open_it(breaker: Breaker, clock: Clock) -> None:
    call(breaker, "failure", "failure", "neither", "failure")
    assert breaker.state == "open"
    clock.now += 4
    assert breaker.enter() == breaker.open_seconds_left == 6


def test_a_success_in_between_keeps_it_closed(breaker: Breaker) -> None:
    call(breaker, "failure", "failure", "success", "failure", "failure")
    assert breaker.state == "closed"
    assert breaker.open_seconds_left == 0


def test_none_of_no_failures_opens_it(clock: Clock) -> None:
    breaker = Breaker("coze", failures=0, open_seconds=OPEN_SECONDS, now=clock)
    for _ in range(100):
        call(breaker, "failure")
    assert breaker.state == "closed"


def test_after_its_time_a_few_pass_and_no_more(breaker: Breaker, clock: Clock) -> None:
    half_opened(breaker, clock)
    for _ in range(PROBES):
        enter(breaker)
    assert breaker.enter() == 2


@pytest.mark.parametrize(("outcome", "state"), [("success", "closed"), ("failure", "open")])
def test_the_first_probe_that_tells_decides(
    breaker: Breaker, clock: Clock, outcome: Outcome, state: str
) -> None:
    half_opened(breaker, clock)
    first, second, third = (enter(breaker) for _ in range(3))
    breaker.leave(first, "neither")
    assert breaker.state == "half-open"
    breaker.leave(second, outcome)
    assert breaker.state == state
    breaker.leave(third, "failure")
    assert breaker.state == state


def test_a_probe_that_tells_nothing_leaves_its_place_to_another(breaker: Breaker, clock: Clock) -> None:
    half_opened(breaker, clock)
    for _ in range(10):
        call(breaker, "neither")
    assert breaker.state == "half-open"


def test_a_slow_probe_holds_up_the_others_for_so_long_only(breaker: Breaker, clock: Clock) -> None:
    half_opened(breaker, clock)
    slow = [enter(breaker) for _ in range(PROBES)]
    clock.now += OPEN_SECONDS
    enter(breaker)
    breaker.leave(slow[0], "success")
    assert breaker.state == "closed"


@pytest.mark.parametrize("outcome", ["success", "failure"])
def test_what_began_before_it_opened_tells_nothing_new(
    breaker: Breaker, clock: Clock, outcome: Outcome
) -> None:
    late = enter(breaker)
    opened(breaker)
    breaker.leave(late, outcome)
    assert breaker.open_seconds_left == OPEN_SECONDS
    clock.now += OPEN_SECONDS
    breaker.leave(late, outcome)
    assert breaker.state == "half-open"


def test_each_change_is_told_once(breaker: Breaker, clock: Clock, changes: list[Change]) -> None:
    half_opened(breaker, clock)
    call(breaker, "failure")
    clock.now += OPEN_SECONDS
    call(breaker, "neither", "success", "success")
    states = ["open", "half-open", "open", "half-open", "closed"]
    assert [change.state for change in changes] == states
    assert changes[0] == Change("coze", "open", "why")


OUTCOMES: dict[Outcome, tuple[Refusal, ...]] = {
    "failure": (
        UpstreamUnreachable(),
        UpstreamTimeout(),
        UpstreamAborted(),
        OutcomeUnknown(),
        UpstreamBadAnswer(),
        UpstreamBadAnswer(reply=Reply(200)),
        UpstreamBadAnswer(reply=Reply(302)),
        UpstreamBadAnswer(reply=Reply(302, 0)),
        OutcomeUnknown(reply=Reply(502)),
        UpstreamFailed(reply=Reply(500, 5000)),
        UpstreamFailed(reply=Reply(200, 5000)),
        UpstreamBusy(reply=Reply(503)),
    ),
    "success": (
        NotFound(reply=Reply(200, 4200)),
        TooLarge(reply=Reply(413, 4302)),
        FileContentMismatch(reply=Reply(200, 4000)),
        UpstreamRefused(reply=Reply(200, 4028)),
        UpstreamCredentialRefused(reply=Reply(401, 4100)),
        UpstreamCredentialRefused(reply=Reply(200, 700012006)),
        UpstreamBusy(reply=Reply(429, 4013)),
        UpstreamBusy(reply=Reply(200, 4013)),
        UpstreamBusy(reply=Reply(200, 4008)),
        UpstreamBusy(reply=Reply(503, 4008)),
        UpstreamBusy(reply=Reply(503, 4009)),
        UpstreamBusy(reply=Reply(503, 4013)),
    ),
    "neither": (
        ClientLeft(),
        FinishDeadline(),
        TooLarge(),
        UpstreamBadAnswer(reply=Reply(405)),
        UpstreamBadAnswer(reply=Reply(200, 0)),
        UpstreamRefused(reply=Reply(403)),
        UpstreamRefused(reply=Reply(404)),
        UpstreamCredentialRefused(reply=Reply(401)),
        UpstreamBusy(reply=Reply(429)),
    ),
}


@pytest.mark.parametrize(
    ("refusal", "outcome"),
    [(refusal, outcome) for outcome, refusals in OUTCOMES.items() for refusal in refusals],
    ids=lambda value: value if isinstance(value, str) else f"{value.code}-{value.reply}",
)
def test_what_is_coze_s_fault_and_what_is_not(refusal: Refusal, outcome: Outcome) -> None:
    assert outcome_of(refusal) == outcome


@pytest.mark.parametrize(
    ("status", "code", "is_stale"),
    [
        (401, None, True),
        (401, 4100, True),
        (200, 4100, True),
        (200, 700012006, True),
        (200, 4101, False),
        (401, 4101, False),
        (401, 4102, False),
        (401, 0, True),
        (401, 5000, True),
        (403, None, False),
    ],
)
def test_another_token_helps_where_coze_does_not_know_this_one(
    status: int, code: int | None, *, is_stale: bool
) -> None:
    assert is_of_credential(UpstreamCredentialRefused(reply=Reply(status, code))) is is_stale


@pytest.mark.parametrize(
    ("status", "code", "is_so"),
    [(429, None, True), (429, 4013, True), (200, 4013, True), (503, None, False), (200, 4008, False)],
)
def test_coze_asks_for_less_by_429_and_4013(status: int, code: int | None, *, is_so: bool) -> None:
    assert asks_for_less(UpstreamBusy(reply=Reply(status, code))) is is_so
