"""Step ``proxy``: which proxy applies, and does it let the broker through?"""

from __future__ import annotations

import os
import ssl
import time
from typing import Any

from broker.doctor.connecting import SILENT, trouble_of
from broker.doctor.finding import Finding, failed, ok, skipped
from broker.doctor.way import Way

VARIABLES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY", "NO_PROXY")
OPEN_TO_NOBODY = 407
FORBIDDEN = 403
SOCKS_REPLY = "its SOCKS reply is"
SOCKS_REFUSALS = range(1, 9)
"""What a SOCKS proxy says when it can't or won't connect (RFC 1928 §6)."""


async def examine(way: Way) -> Finding:
    """Says what is set besides what applies; goes through the proxy as far as Coze's port."""
    given = variables()
    try:
        applies, named = way.settings.coze_proxy, way.settings.named_proxy
    except ValueError:
        means = "The proxy that is set is not written as one."
        return failed("the proxy's address can't be read", means, "See the step settings.", variables=given)
    if applies is None or named is None:
        return _none(way, given)
    facts = {"proxy": applies.address, "named_by": named[0], "variables": given}
    if not (applies.resolves_names or way.addresses):
        return skipped("the proxy is told an address, and DNS has none")
    where = f"{applies.address} (from {named[0]})"
    started = time.monotonic()
    trouble = await _through(way)
    if trouble:
        return judged(where, trouble, has_password=applies.username is not None, facts=facts)
    return ok(f"{where} lets us through, {(time.monotonic() - started) * 1000:.0f} ms", **facts)


def judged(where: str, trouble: str | int, *, has_password: bool, facts: dict[str, Any]) -> Finding:
    """What a proxy's refusal means: its HTTP status, its SOCKS reply, or what became of the connection."""
    if trouble in (OPEN_TO_NOBODY, "password"):
        means = "The proxy takes not the name and password that are set." if has_password else ""
        return failed(
            f"{where} asks for a password",
            means or "It lets nobody through who does not say who they are.",
            "Write them into the proxy's URL: http://name:password@host:port, with %XX for special signs.",
            **facts,
        )
    if trouble == FORBIDDEN:
        means = "The proxy forbids this host or this port."
        return failed(f"{where} answers 403", means, "Ask whoever runs it to allow Coze's host.", **facts)
    if isinstance(trouble, int) or trouble.startswith(SOCKS_REPLY):
        said = f"answers {trouble}" if isinstance(trouble, int) else f"answers: {trouble}"
        means = "The proxy is there, and does not get through to Coze itself."
        return failed(f"{where} {said}", means, "Look into the proxy's log.", **facts)
    if trouble == SILENT:
        means = "Packets to the proxy vanish, or it takes long to get through to Coze, or can't."
        do = "Check its address, and whether it lets this machine in; look into its log."
        return failed(f"{where}: {trouble}", means, do, **facts)
    return failed(
        f"{where}: {trouble}",
        "The proxy can't be reached, or what is there is no proxy of this kind.",
        "Mend its address, or set UPSTREAM_PROXY=none to go without it.",
        **facts,
    )


def variables() -> list[str]:
    """Which of the variables are set; their values may hold passwords."""
    return [name for name in VARIABLES if os.environ.get(name) or os.environ.get(name.lower())]


def _none(way: Way, given: list[str]) -> Finding:
    facts: dict[str, Any] = {"proxy": None, "named_by": None, "variables": given}
    named = [name for name in given if name in ("HTTPS_PROXY", "ALL_PROXY")]
    if not named:
        return ok("no proxy is set for Coze; the broker goes directly", **facts)
    if way.settings.upstream_proxy == "none":
        return ok(f"{' and '.join(named)} is set; UPSTREAM_PROXY=none passes it over", **facts)
    return ok(
        f"{' and '.join(named)} is set and does not apply: NO_PROXY, or a host on this machine", **facts
    )


async def _through(way: Way) -> str | int:
    """Empty when it went through; else what the proxy said, or what became of the connection."""
    from python_socks import ProxyConnectionError, ProxyError, ProxyTimeoutError

    from broker.doctor.connecting import opened

    try:
        async with opened(way):
            return ""
    except (ProxyTimeoutError, TimeoutError):
        return SILENT
    except ProxyConnectionError as error:
        return trouble_of(error)
    except ProxyError as error:
        return _said(error)
    except ssl.SSLError:
        return "its TLS certificate does not verify"
    except OSError as error:
        return trouble_of(error)


def _said(error: Any) -> str | int:
    """The library's own sentence is read, not shown: it quotes what the proxy sent."""
    code = error.error_code
    if isinstance(code, int) and code not in SOCKS_REFUSALS:
        return code
    text = str(error).lower()
    if "auth" in text:
        return "password"
    if isinstance(code, int):
        return f"{SOCKS_REPLY} {code}"
    return "no answer that a proxy gives"
