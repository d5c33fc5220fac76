"""DNS over HTTPS (RFC 8484): for where the system's resolver lies, or says nothing."""

from __future__ import annotations

import asyncio
import base64
from typing import Literal

import dns.exception
import dns.message
import dns.rcode
import httpx

from broker.errors import UpstreamBadAnswer
from broker.upstream.client import CLIENT_ERRORS, Answered, call

MEDIA_TYPE = "application/dns-message"
KINDS = ("AAAA", "A")
OTHER_FAMILY_SECONDS = 0.5
"""How long the second family's answer is waited for once the first has come with addresses (RFC 8305 §3)."""


Trouble = Literal["nxdomain", "empty", "failed", "not DNS"]


class DnsError(OSError):
    """No address by DNS over HTTPS. Where the server could not be asked, that is ``__cause__``."""

    def __init__(self, host: str, trouble: Trouble, said: str) -> None:
        super().__init__(None, f"DNS over HTTPS for {host}: {said}")
        self.trouble = trouble
        """No such name, a name without addresses, an error of the server's or of the way to it, or an answer
        that is none to the question."""


class _RcodeError(ValueError):
    """The server answers with an error of DNS's own."""

    def __init__(self, code: dns.rcode.Rcode) -> None:
        super().__init__(dns.rcode.to_text(code))
        self.code = code


class DohLookup:
    """Asks the server at ``url``, through ``client``. There is no falling back on the system's resolver: it
    is not asked because it is not believed.
    """

    def __init__(self, client: httpx.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url

    async def __call__(self, host: str) -> list[str]:
        """The addresses of a host, both families. Raises ``DnsError``, or ``TimeoutError``."""
        asked = [asyncio.create_task(self._ask(host, kind)) for kind in KINDS]
        try:
            return await _addresses_of(host, asked)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections to the server."""
        await self._client.aclose()

    async def _ask(self, host: str, kind: str) -> list[str]:
        try:
            query = dns.message.make_query(host, kind, id=0)  # §4.1: so that answers can be cached
            answered = await call(
                self._client,
                "GET",
                self._url,
                params={"dns": base64.urlsafe_b64encode(query.to_wire()).rstrip(b"=").decode()},
                headers={"Accept": MEDIA_TYPE},
            )
            return _addresses(query, _message(answered))
        except TimeoutError:
            raise
        except (*CLIENT_ERRORS, dns.exception.DNSException, UpstreamBadAnswer, ValueError) as error:
            said = getattr(error, "log", None) or f"{type(error).__name__}: {error}"
            raise DnsError(host, _trouble(error), said) from error


async def _addresses_of(host: str, asked: list[asyncio.Task[list[str]]]) -> list[str]:
    """What the first answer with addresses says, and the other if it comes soon enough."""
    done, late = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    if late:
        has_some = any(task.exception() is None and task.result() for task in done)
        await asyncio.wait(late, timeout=OTHER_FAMILY_SECONDS if has_some else None)
    answered = [task for task in asked if task.done()]
    failures = [error for task in answered if (error := task.exception()) is not None]
    addresses = [address for task in answered if task.exception() is None for address in task.result()]
    if addresses:
        return addresses
    raise failures[0] if failures else DnsError(host, "empty", "it has no address")


def _trouble(error: BaseException) -> Trouble:
    if isinstance(error, _RcodeError):
        return "nxdomain" if error.code == dns.rcode.NXDOMAIN else "failed"
    return "failed" if isinstance(error, CLIENT_ERRORS) else "not DNS"


def _message(answered: Answered) -> dns.message.Message:
    media_type = answered.headers.get("content-type", "").partition(";")[0].strip().lower()
    if answered.status != 200 or media_type != MEDIA_TYPE:  # noqa: PLR2004 - HTTP's own
        raise ValueError(f"status {answered.status}, {media_type[:60] or 'no type'}")
    return dns.message.from_wire(answered.content)


def _addresses(query: dns.message.QueryMessage, message: dns.message.Message) -> list[str]:
    """What the answer says of the name that was asked for, by way of its other names (CNAME)."""
    if not isinstance(message, dns.message.QueryMessage) or not query.is_response(message):
        raise ValueError("the answer is to another question")
    if message.rcode() != dns.rcode.NOERROR:
        raise _RcodeError(message.rcode())
    found = message.resolve_chaining().answer
    return [] if found is None else [each.to_text() for each in found]
