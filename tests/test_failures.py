"""Guessing costs time, by address and by what is guessed; who was good before is not held up."""

from __future__ import annotations

import pytest

from broker.auth.failures import MAX_COUNTS, PREFIX_FACTOR, Failures
from broker.errors import TooManyFailures
from tests.support.clock import Clock


@pytest.fixture
def failures(clock: Clock) -> Failures:
    return Failures(max_failures=3, ticks=clock)


def test_after_so_many_the_next_one_waits_out_the_minute(failures: Failures, clock: Clock) -> None:
    for number in range(3):
        failures.check("192.0.2.1", f"guess {number}")
        failures.note_bad("192.0.2.1", f"guess {number}")
    clock.now += 20
    with pytest.raises(TooManyFailures) as refused:
        failures.check("192.0.2.1", "another")
    assert refused.value.retry_after_seconds == 41
    failures.check("192.0.2.2", "another")
    clock.now += 40
    failures.check("192.0.2.1", "another")


def test_what_begins_the_same_waits_from_wherever_it_comes(failures: Failures) -> None:
    for number in range(3 * PREFIX_FACTOR):
        failures.note_bad(f"192.0.2.{number}", f"cub_sk_abcd{number}")
    with pytest.raises(TooManyFailures):
        failures.check("198.51.100.1", "cub_sk_abcd and what not")
    failures.check("198.51.100.1", "cub_sk_wxyz and what not")


@pytest.mark.parametrize("credential", ["eyJhbGciOiJFZERTQSJ9.e30.{}", "", "guess {}"])
def test_what_is_no_key_waits_for_its_own_address_alone(failures: Failures, credential: str) -> None:
    """All tokens begin alike, and a signed request has no credential: else one would hold up everybody."""
    for number in range(3 * PREFIX_FACTOR):
        failures.note_bad(f"192.0.2.{number}", credential.format(number))
    failures.check("198.51.100.1", credential.format("and what not"))


def test_what_was_good_before_is_looked_at(failures: Failures) -> None:
    failures.note_good("cub_sk_abcd-the-right-one")
    for number in range(40):
        failures.note_bad("192.0.2.1", f"cub_sk_abcd{number}")
    failures.check("192.0.2.1", "cub_sk_abcd-the-right-one")
    with pytest.raises(TooManyFailures):
        failures.check("192.0.2.1", "cub_sk_abcd-another-one")


def test_many_addresses_cost_no_more_memory_than_so_much(failures: Failures) -> None:
    for number in range(MAX_COUNTS + 1000):
        failures.note_bad(f"address {number}", str(number))
    assert len(failures._counts) <= MAX_COUNTS
    for number in range(10_000):
        failures.note_good(str(number))
    assert len(failures._good) <= 4096
