"""Step ``proxy``: which proxy applies, and does it let the broker through?"""

from __future__ import annotations

import os
import re
import ssl
import time
from typing import Any
from urllib.request import getproxies_environment

from broker.doctor.connecting import SILENT, patience, trouble_of
from broker.doctor.finding import Finding, failed, ok, skipped, warning
from broker.doctor.way import Way
from broker.settings import env_file, is_this_machine
from broker.settings.proxy import is_exempt

VARIABLES = ("HTTPS_PROXY", "ALL_PROXY", "HTTP_PROXY", "NO_PROXY")
FOR_HTTPS = ("HTTPS_PROXY", "ALL_PROXY")
OPEN_TO_NOBODY = 407
FORBIDDEN = 403
SOCKS_REPLY = "its SOCKS reply is"
SOCKS_REFUSALS = range(1, 9)
"""What a SOCKS proxy says when it can't or won't connect (RFC 1928 §6)."""
OF_THE_ENVIRONMENT = "; the service needs that variable in its own environment, too"
OTHER_SCHEMES = "it wants NTLM or Kerberos, which the broker does not speak"
USE_LOCAL_PROXY = "put a small local proxy that does (cntlm, px) in between"
NOT_BASIC = "It wants another kind than Basic, which is all that the broker speaks."
_FIELD = re.compile(rb"^proxy-authenticate:([^\r\n]*)", re.IGNORECASE | re.MULTILINE)
_SCHEME = re.compile(rb"(?:^|,)[ \t]*([a-z][a-z0-9-]*)(?=[ \t]*(?:,|$)|[ \t]+[^ \t=,])", re.IGNORECASE)
"""Several may stand in one line, each with parameters behind it (RFC 9110 §11.6.1)."""
_OF_WINDOWS = {b"ntlm", b"negotiate", b"kerberos"}


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
    heard = bytearray()
    trouble = await _through(way, heard)
    if trouble in (OPEN_TO_NOBODY, "password"):
        return _password(where, bytes(heard), has_one=applies.username is not None, facts=facts)
    if trouble:
        return judged(where, trouble, waited=patience(way), facts=facts)
    found = f"{where} lets us through, {(time.monotonic() - started) * 1000:.0f} ms"
    return ok(found + ("" if named[0] == "UPSTREAM_PROXY" else OF_THE_ENVIRONMENT), **facts)


def _password(where: str, heard: bytes, *, has_one: bool, facts: dict[str, Any]) -> Finding:
    """``heard``: what an HTTP proxy answered, which names the ways to say who one is (RFC 9110 §11.7.1)."""
    found, write = f"{where} asks for a password", "Write name and password into the proxy's URL"
    write += ": http://name:password@host:port, with %XX for special signs"
    schemes = {each.lower() for line in _FIELD.findall(heard) for each in _SCHEME.findall(line)}
    if schemes and not schemes & {b"basic", *_OF_WINDOWS}:
        return failed(found, NOT_BASIC, "Have it offer Basic, or take another proxy.", **facts)
    if schemes and b"basic" not in schemes:
        means = f"I{OTHER_SCHEMES[1:]}."
        return failed(found, means, f"P{USE_LOCAL_PROXY[1:]}.", **facts)
    if not has_one:
        return failed(found, "It lets nobody through who does not say who they are.", f"{write}.", **facts)
    means = "The proxy takes not the name and password that are set."
    if not heard:
        return failed(found, means, f"{write}.", **facts)
    return failed(found, means, f"{write}; or {OTHER_SCHEMES}; {USE_LOCAL_PROXY}.", **facts)


def judged(where: str, trouble: str | int, *, waited: str, facts: dict[str, Any]) -> Finding:
    """What a proxy's refusal means: its HTTP status, its SOCKS reply, or what became of the connection.
    ``waited`` says for how long.
    """
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
        return failed(f"{where}: {trouble} ({waited})", means, do, **facts)
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
    named = [name for name in given if name in FOR_HTTPS]
    if not named:
        return _passed_over(way, facts) or ok("no proxy is set for Coze; the broker goes directly", **facts)
    if way.settings.upstream_proxy == "none":
        return ok(f"{' and '.join(named)} is set; UPSTREAM_PROXY=none passes it over", **facts)
    return ok(
        f"{' and '.join(named)} is set and does not apply: NO_PROXY, or a host on this machine", **facts
    )


def _passed_over(way: Way, facts: dict[str, Any]) -> Finding | None:
    """What looks like a proxy for Coze, and is none."""
    target, no_proxy = way.target, getproxies_environment().get("no", "")
    is_wanted = way.settings.upstream_proxy == "environment" and not is_this_machine(target.host)
    if not is_wanted or is_exempt(target.host, target.port, no_proxy):
        return None
    do = "Set UPSTREAM_PROXY to that address if Coze is to be reached through it."
    if written := [name for name, value in _in_file().items() if value and name.upper() in FOR_HTTPS]:
        means = "The file is read for the broker's own settings alone: no proxy applies."
        return warning(f"{written[0]} stands in .env", means, do, **facts)
    if "HTTP_PROXY" in facts["variables"]:
        means = "It is for plain http, and Coze is https: no proxy applies."
        return warning("HTTP_PROXY alone is set", means, f"{do} Or set HTTPS_PROXY.", **facts)
    return None


def _in_file() -> dict[str, str | None]:
    try:
        return env_file.values()
    except (OSError, UnicodeDecodeError):  # the step settings says so
        return {}


async def _through(way: Way, heard: bytearray) -> str | int:
    """Empty when it went through; else what the proxy said, or what became of the connection."""
    from python_socks import ProxyError, ProxyTimeoutError

    from broker.doctor.connecting import opened

    try:
        async with opened(way, heard):
            return ""
    except (ProxyTimeoutError, TimeoutError):
        return SILENT
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
