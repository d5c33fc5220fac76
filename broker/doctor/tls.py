"""Step ``tls``: is it Coze who answers, and does the clock of this machine agree?"""

from __future__ import annotations

import asyncio
import ssl
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from broker.doctor.connecting import Stream, looking, opened, patience, trouble_of, verifying
from broker.doctor.finding import Finding, failed, ok, skipped, warning
from broker.doctor.tls_line import TlsLine
from broker.doctor.way import OTHER_REGION, Way
from broker.upstream.http_date import unix_seconds

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

SLOW_SECONDS = 2.0
SKEW_SECONDS = 60.0
SOON_SECONDS = 7 * 86_400
MAX_HEAD_BYTES = 8192
EXPIRED, NOT_YET_VALID = 10, 9
SELF_SIGNED, SELF_SIGNED_ROOT, NO_ISSUER, NO_CHAIN = 18, 19, 20, 21
WRONG_NAMES = (62, 64)
WRONG_PURPOSE = 26
WEAK_KEY, WEAK_AUTHORITY, WEAK_DIGEST = 66, 67, 68
"""OpenSSL's X509_V_ERR_… codes."""
_UNFIT = {
    WRONG_PURPOSE: (
        "a certificate in the chain is not made for this purpose",
        "It is a client's or a mail's, say, and not a server's; or its authority may not vouch for servers.",
    ),
    WEAK_KEY: (
        "the server's key is too short to be safe",
        "Such a key (RSA below 2048 bits) can be computed, so it proves nothing.",
    ),
    WEAK_AUTHORITY: (
        "an authority's key in the chain is too short to be safe",
        "Such a key (RSA below 2048 bits) can be computed, so what it signed proves nothing.",
    ),
    WEAK_DIGEST: (
        "a certificate in the chain is signed with a digest that is broken",
        "One signed over SHA-1 or MD5 can be forged, so it proves nothing.",
    ),
}
RENEW = (
    "If it is your own server's or your company's gateway's, have its certificate made anew: for a server, "
    "with 2048 bits or more, and SHA-256. Verification can't be turned off."
)
REPLACED = "Something in between replaces the certificate: a proxy, a firewall, a virus scanner, an attacker."
NOT_TURNED_OFF = "Verification can't be turned off."
LET_THROUGH = f"Have Coze's host taken out of its inspection, or try another network. {NOT_TURNED_OFF}"
NO_TIME = "The broker waits there until its time for connecting is over: such uploads are upstream_timeout."
CLOCK = "Set this machine's clock (NTP: `timedatectl`, chrony)."


@dataclass(frozen=True)
class Shown:
    """A server's certificate, as it was shown; nothing of it is trusted."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    not_before: float
    not_after: float
    is_self_signed: bool

    @property
    def facts(self) -> dict[str, Any]:
        """For a program; times in Unix seconds."""
        return {
            "subject": self.subject,
            "issuer": self.issuer,
            "names": list(self.names),
            "not_before": int(self.not_before),
            "not_after": int(self.not_after),
        }


@dataclass(frozen=True)
class Shaken:
    """A handshake that went well. ``address`` is None where a proxy went there; ``seconds`` are those of
    connecting, too.
    """

    certificate: dict[str, Any]
    address: str | None
    seconds: float


@dataclass(frozen=True)
class Refused:
    """Why a certificate did not verify, and all that helps to say so."""

    host: str
    code: int
    shown: Shown | None
    skew_seconds: float | None
    """How far this clock is ahead of the server's; None where the server told no time."""
    now: float
    public_issuers: frozenset[str] = frozenset()
    """The organizations behind the built-in authorities."""


async def examine(way: Way) -> Finding:
    """One verified handshake; where that fails, at the other addresses, and one more to look at what is
    there.
    """
    if not way.target.is_tls:
        return skipped("plain http, which is allowed on this machine alone")
    context = verifying(way.settings.upstream_ca_file)
    try:
        shaken = await _verified(_at(way, way.addresses[:1]), context)
    except Exception as error:  # a proxy's library has its own, too
        other = await _elsewhere(way, context)
        if other is not None:
            return _half_good(way, error, other)
        if isinstance(error, ssl.SSLCertVerificationError):
            return judged(await _looked_at(way, error.verify_code))
        return _broken(way, error)
    return _good(way, shaken, is_public=await _is_public(way))


def judged(refused: Refused) -> Finding:
    """What it means that a certificate does not verify."""
    shown, code = refused.shown, refused.code
    facts: dict[str, Any] = {"verify_code": code, **(shown.facts if shown else {})}
    if refused.skew_seconds is not None:
        facts["clock_ahead_seconds"] = round(refused.skew_seconds)
    if code in (EXPIRED, NOT_YET_VALID):
        return _of_time(refused, facts)
    if code in WRONG_NAMES:
        names = ", ".join(shown.names[:6]) if shown else "another name"
        return failed(
            f"the certificate is for {names or 'no name'}, not for {refused.host}",
            "Another server answers at this address: a wrong address by DNS or UPSTREAM_HOSTS, or a gateway "
            "in between.",
            "Compare the step dns with another resolver (--doh URL); check UPSTREAM_HOSTS.",
            **facts,
        )
    if code in _UNFIT:
        found, means = _UNFIT[code]
        return failed(found, means, RENEW, **facts)
    if code == SELF_SIGNED or (shown is not None and shown.is_self_signed):
        return _self_signed(refused, facts)
    return _of_chain(refused, facts)


def _of_time(refused: Refused, facts: dict[str, Any]) -> Finding:
    shown, skew = refused.shown, refused.skew_seconds
    if shown is not None and shown.not_before <= refused.now <= shown.not_after:
        return failed(
            "a certificate in the chain is out of date, not the server's own",
            "The server sends an old chain, UPSTREAM_CA_FILE has an old authority, or the clock is wrong.",
            f"Mend the chain or the file. {CLOCK}",
            **facts,
        )
    is_early = refused.code == NOT_YET_VALID
    when = _day(shown.not_before if is_early else shown.not_after) if shown else "another time"
    found = f"the certificate {'is valid only from' if is_early else 'expired on'} {when}, and it is " + _day(
        refused.now
    )
    if skew is not None and abs(skew) > SKEW_SECONDS and (skew < 0) == is_early:
        side = "behind" if is_early else "ahead of"
        means = f"This machine's clock is {_span(abs(skew))} {side} the server's."
        return failed(found, means, CLOCK, **facts)
    if is_early:
        means = "This machine's clock is behind, or the certificate was made too early."
        return failed(found, means, CLOCK, **facts)
    means = "The server's certificate is out of date"
    means += (
        "; the server's clock agrees with this one." if skew is not None else ", or this machine's clock is."
    )
    do = (
        f"If {refused.host} is your own, renew it. If it is Coze's, check the clock; then wait, or tell Coze."
    )
    return failed(found, means, do, **facts)


def _self_signed(refused: Refused, facts: dict[str, Any]) -> Finding:
    found = f"the certificate is self-signed ({refused.shown.subject if refused.shown else 'unknown'})"
    means = "Anybody can make such a one."
    if _is_cozes(refused):
        return failed(found, f"{means} {REPLACED}", LET_THROUGH, **facts)
    do = f"If it is your own server's, put its certificate into UPSTREAM_CA_FILE. {NOT_TURNED_OFF}"
    return failed(found, f"{means} {_interceptor(refused)}", do, **facts)


def _of_chain(refused: Refused, facts: dict[str, Any]) -> Finding:
    shown = refused.shown
    issuer = shown.issuer if shown else "somebody"
    plain = issuer.replace("\\", "")  # RFC 4514 §2.4 escapes the comma in "DigiCert, Inc."
    looks_public = shown is not None and any(name and name in plain for name in refused.public_issuers)
    if looks_public and _is_cozes(refused):  # whose chain is whole; anybody may call himself as he likes
        found = f"the certificate says that {issuer} issued it, and nothing shows that"
        return failed(found, REPLACED, LET_THROUGH, **facts)
    if looks_public and refused.code in (NO_ISSUER, NO_CHAIN):
        return failed(
            f"the chain to {issuer} is incomplete",
            "The issuer looks public, but the server does not send the certificates in between; or something "
            "in between replaces the certificate, and calls itself so.",
            "Mend the server's chain; or fetch the missing certificate from the issuer's own site, and put "
            "it into UPSTREAM_CA_FILE.",
            **facts,
        )
    return failed(
        f"the certificate was issued by {issuer}, which is no public authority",
        _interceptor(refused),
        "If it is your company's gateway or your own server, put its authority into UPSTREAM_CA_FILE; the "
        "system's own store is not read, so that curl may work. Verification can't be turned off.",
        **facts,
    )


def _interceptor(refused: Refused) -> str:
    if _is_cozes(refused):
        return "Something between here and Coze opens the encryption: a proxy, a firewall, a virus scanner."
    return "It is a server with a private authority, or something in between opens the encryption."


def _is_cozes(refused: Refused) -> bool:
    """Whether it is one of Coze's own hosts, and not a server that somebody else runs."""
    return refused.host in OTHER_REGION


def _broken(way: Way, error: Exception) -> Finding:
    trouble = trouble_of(error)
    if isinstance(error, TimeoutError):
        return failed(
            f"TCP connects, and the TLS handshake gets no answer in time ({patience(way)})",
            "Something on the way drops it by the host's name (SNI filter), or large packets get lost (MTU).",
            "Try another network or UPSTREAM_PROXY; in a VPN or container lower the MTU (1400). If the line "
            "is only slow, look again with a longer --timeout.",
            trouble=trouble,
        )
    if isinstance(error, ConnectionError | asyncio.IncompleteReadError):
        return failed(
            "the connection is cut during the TLS handshake",
            "A firewall on the way cuts it by the host's name, or nothing that speaks TLS is there.",
            "Try another network or UPSTREAM_PROXY; check the port of COZE_API_BASE.",
            trouble=trouble,
        )
    reason = str(getattr(error, "reason", None) or trouble)
    found = f"the TLS handshake fails: {reason.replace('_', ' ').lower()}"
    if "ALERT" in reason or "UNRECOGNIZED_NAME" in reason:  # RFC 8446 §6.2
        return failed(
            found,
            "What answers speaks TLS, and refuses this name or our TLS.",
            "Check UPSTREAM_HOSTS, and compare the step dns with another resolver (--doh URL).",
            trouble=trouble,
        )
    return failed(
        found,
        "What answers speaks no TLS, or none that is still safe.",
        "Check the port of COZE_API_BASE and what stands in between.",
        trouble=trouble,
    )


def _half_good(way: Way, error: Exception, other: Shaken) -> Finding:
    """``error`` is that of the first address."""
    first, trouble = way.addresses[0], trouble_of(error)
    way.addresses = tuple(sorted(way.addresses, key=lambda each: each != other.address))
    found = f"TLS is good at {other.address}, and not at {first}: {trouble}"
    do = f"Set UPSTREAM_HOSTS={way.target.host}={other.address}, or have {first} looked at."
    facts = {"address": other.address, "troubles": {first: trouble}}
    if isinstance(error, TimeoutError):
        do += " If the line is only slow, look again with a longer --timeout."
        return failed(f"{found} ({patience(way)})", NO_TIME, do, **facts)
    means = f"{first} is another's server, or has trouble. The broker goes on to the next address."
    return warning(found, means, do, **facts)


def _good(way: Way, shaken: Shaken, *, is_public: bool) -> Finding:
    issuer, seconds = _issuer_of(shaken.certificate), shaken.seconds
    ends_at = ssl.cert_time_to_seconds(shaken.certificate["notAfter"])
    facts = {
        "address": shaken.address,
        "issuer": issuer,
        "not_after": ends_at,
        "milliseconds": round(seconds * 1000, 1),
        "public_authority": is_public,
    }
    found = f"issued by {issuer}, valid until {_day(ends_at)}, {seconds * 1000:.0f} ms"
    if not is_public:
        found += "; trusted by UPSTREAM_CA_FILE alone"
    limit = way.settings.broker_connect_timeout_seconds
    if seconds > limit:
        means = f"The broker waits {limit:g} s to be connected, TLS included: uploads are upstream_timeout."
        return failed(found, means, "Raise BROKER_CONNECT_TIMEOUT_SECONDS, or mend the line.", **facts)
    if seconds > SLOW_SECONDS:
        means = "Connecting and its handshake take very long: a busy line, or one that loses packets."
        return warning(found, means, "Raise BROKER_CONNECT_TIMEOUT_SECONDS if uploads time out.", **facts)
    if not is_public and way.target.host in OTHER_REGION:
        means = (
            "Something between here and Coze opens the encryption, and you let it: it can read everything."
        )
        return warning(found, means, "Have Coze's host taken out of its inspection.", **facts)
    if ends_at - time.time() < SOON_SECONDS:
        return warning(found, "It ends within a week.", "If the server is your own, renew it.", **facts)
    return ok(found, **facts)


# --- connecting -----------------------------------------------------------------------------------------


def _at(way: Way, addresses: tuple[str, ...]) -> Way:
    """The way to some of its addresses. A proxy is told all of them, as the broker tells it."""
    return way if way.proxy is not None else replace(way, addresses=addresses)


async def _elsewhere(way: Way, context: ssl.SSLContext) -> Shaken | None:
    """At another address than the first; at all at once. None where there is none, or a proxy goes there."""
    others = () if way.proxy is not None else way.addresses[1:]
    tried = (_verified(_at(way, (each,)), context) for each in others)
    done = await asyncio.gather(*tried, return_exceptions=True)
    return next((each for each in done if isinstance(each, Shaken)), None)


async def _verified(way: Way, context: ssl.SSLContext) -> Shaken:
    """A handshake with a certificate that ``context`` accepts."""
    started = time.monotonic()
    async with asyncio.timeout(2 * way.wait_seconds), opened(way) as stream:
        line = await _started(way, stream, context)
        address = way.addresses[0] if way.proxy is None else None
        return Shaken(line.tls.getpeercert() or {}, address, time.monotonic() - started)


async def _is_public(way: Way) -> bool:
    """Whether the built-in authorities alone would do."""
    if way.settings.upstream_ca_file is None:
        return True
    try:
        await _verified(way, verifying(None))
    except ssl.SSLCertVerificationError:
        return False
    except Exception:  # it is known to work; that it did not now says nothing of who issued it
        return True
    return True


async def _started(way: Way, stream: Stream, context: ssl.SSLContext) -> TlsLine:
    """A time-out here is the handshake's."""
    line = TlsLine(stream, context, way.target.host)
    async with asyncio.timeout(way.wait_seconds):
        await line.handshake()
    return line


async def _looked_at(way: Way, code: int) -> Refused:
    shown, skew = None, None
    with suppress(Exception):  # a look that fails is no finding of its own
        async with asyncio.timeout(2 * way.wait_seconds), opened(way) as stream:
            line = await _started(way, stream, looking())
            shown = shown_certificate(line.tls.getpeercert(True) or b"")
            skew = await _skew(way, line)
    return Refused(way.target.host, code, shown, skew, time.time(), _public_issuers())


async def _skew(way: Way, line: TlsLine) -> float | None:
    """By the Date of an answer (RFC 9110 §6.6.1) to a request that says nothing. None where there is none."""
    host = way.target.origin.partition("://")[2]
    head = b""
    try:
        async with asyncio.timeout(way.wait_seconds):
            await line.write(f"HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            while b"\r\n\r\n" not in head and len(head) < MAX_HEAD_BYTES:
                head += await line.read()
    except (OSError, ssl.SSLError):
        return None
    lines = head.decode("latin-1").split("\r\n")
    dates = [each.partition(":")[2].strip() for each in lines if each.lower().startswith("date:")]
    return clock_ahead_seconds(dates[0], time.time()) if dates else None


def clock_ahead_seconds(date: str, now: float) -> float | None:
    """How far a clock that says ``now`` is ahead of an HTTP date. None for what is no date."""
    at = unix_seconds(date)
    return None if at is None else now - at


def shown_certificate(der: bytes) -> Shown:
    """Read what a server showed. Raises ``ValueError`` for what is no certificate."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(der)
    return Shown(
        subject=_printable(certificate.subject.rfc4514_string()),
        issuer=_printable(certificate.issuer.rfc4514_string()),
        names=_names(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        is_self_signed=certificate.subject == certificate.issuer,
    )


def _names(certificate: Certificate) -> tuple[str, ...]:
    from cryptography import x509

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    addresses = found.get_values_for_type(x509.IPAddress)
    return tuple(_printable(str(name)) for name in (*found.get_values_for_type(x509.DNSName), *addresses))


def _public_issuers() -> frozenset[str]:
    authorities: list[Any] = verifying(None).get_ca_certs()
    subjects = [dict(part for rdn in each["subject"] for part in rdn) for each in authorities]
    return frozenset(str(each.get("organizationName", "")) for each in subjects)


def _issuer_of(certificate: dict[str, Any]) -> str:
    parts = dict(part for rdn in certificate.get("issuer", ()) for part in rdn)
    return _printable(str(parts.get("organizationName") or parts.get("commonName") or "somebody"))


def _printable(text: str) -> str:
    """Whoever made the certificate wrote it: nothing that moves a cursor."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:200])


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _span(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
