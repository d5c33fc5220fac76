"""Which limits a caller is under: its key's, subject's, origin's, address's. Decides, counts nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from broker.auth.caller import USERS_KEY_ID, Caller
from broker.client_address import bucket_of
from broker.settings import Settings
from broker.state.leases import Hold
from broker.state.limits import Limit


@dataclass(frozen=True)
class Quotas:
    """What the operator set; a bound of 0 is none. A key's own limits come before the settings'.

    Servers are not limited by their address: all of their users come from it.
    """

    is_enabled: bool = True
    window_seconds: int = 60
    requests: int = 100
    bytes: int = 0
    requests_per_key: int = 0
    requests_per_origin: int = 0
    inflight_per_key: int = 0
    inflight_per_subject: int = 0

    @classmethod
    def of_settings(cls, settings: Settings) -> Quotas:
        """The quotas that the settings describe."""
        return cls(
            is_enabled=settings.enable_rate_limit,
            window_seconds=settings.rate_limit_window,
            requests=settings.rate_limit_requests,
            bytes=settings.broker_rate_limit_bytes,
            requests_per_key=settings.broker_rate_limit_requests_per_key,
            requests_per_origin=settings.broker_rate_limit_requests_per_origin,
            inflight_per_key=settings.broker_max_inflight_uploads_per_key,
            inflight_per_subject=settings.broker_max_inflight_uploads_per_subject,
        )

    def of_request(self, caller: Caller) -> list[Limit]:
        """The limits that one request counts against."""
        return list(self._requests(caller)) if self.is_enabled else []

    def of_bytes(self, caller: Caller, size: int) -> list[Limit]:
        """The limits that ``size`` bytes count against, at mint or, with an API key, at the upload."""
        return list(self._bytes(caller, size)) if self.is_enabled else []

    def of_uploads(self, caller: Caller) -> list[Hold]:
        """The places that one upload takes up as long as it runs."""
        own = caller.rights.limits.inflight_uploads
        of_key = self.inflight_per_key if own is None else own
        return [
            Hold(f"key:{caller.key_id}", 0 if caller.key_id == USERS_KEY_ID else of_key),
            Hold(f"subject:{caller.subject}", self.inflight_per_subject if has_subject(caller) else 0),
        ]

    def _requests(self, caller: Caller) -> Iterator[Limit]:
        own = caller.rights.limits
        of_key = self.requests_per_key if own.requests is None else own.requests
        if of_key and caller.key_id != USERS_KEY_ID:
            yield Limit("key", caller.key_id, of_key, own.window_seconds or self.window_seconds)
        if has_subject(caller):
            yield Limit("subject", str(caller.subject), self.requests, self.window_seconds)
        if not caller.is_server:
            yield Limit("ip", bucket_of(caller.address), self.requests, self.window_seconds)
        if caller.origin and self.requests_per_origin:
            yield Limit("origin", caller.origin, self.requests_per_origin, self.window_seconds)

    def _bytes(self, caller: Caller, size: int) -> Iterator[Limit]:
        own = caller.rights.limits
        if own.bytes:
            window_seconds = own.window_seconds or self.window_seconds
            yield _of_bytes("key-bytes", caller.key_id, own.bytes, window_seconds, size)
        if not self.bytes:
            return
        if has_subject(caller):
            yield _of_bytes("subject-bytes", str(caller.subject), self.bytes, self.window_seconds, size)
        elif caller.is_of_a_page:
            yield _of_bytes("ip-bytes", bucket_of(caller.address), self.bytes, self.window_seconds, size)


def _of_bytes(name: str, bucket: str, quota: int, window_seconds: float, size: int) -> Limit:
    """What is over all of the quota is never had, however far over: a caller may write any number."""
    return Limit(name, bucket, quota, window_seconds, min(size, quota + 1))


def has_subject(caller: Caller) -> bool:
    """Whether it is known whom the caller acts for; a key that acts for nobody else is its own subject."""
    return caller.subject is not None and caller.subject != caller.key_id
