"""What is wrong or unwise with the settings of the way to Coze, and what is left of it without that."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from broker.settings import files, hosts
from broker.settings.addresses import hostname_of, web_address
from broker.settings.fields import Settings
from broker.settings.proxy import SocksCredentialError


def problems(settings: Settings) -> Iterator[str]:
    """A sentence each."""
    for name in settings.upstream_private_hosts:
        if not hosts.is_host_name(name):
            yield f"UPSTREAM_PRIVATE_HOSTS: {name[:60]!r} is no host's name like coze.example.com."
    yield from doh_problems(settings.upstream_doh_url)
    yield from _proxy_problems(settings)
    yield from _ca_problems(settings.upstream_ca_file)


def warnings(settings: Settings) -> Iterator[str]:
    """Of what has no effect. Only settings without problems are warned of."""
    through = settings.coze_proxy
    if settings.upstream_doh_url and through is not None and through.resolves_names:
        yield "UPSTREAM_DOH_URL is not used: the proxy looks up Coze's name itself."
    used = {hostname_of(url) for url in (settings.coze_api_base, settings.upstream_doh_url)}
    used |= {through.host} if through else set()
    for name in sorted({*settings.upstream_hosts, *settings.upstream_private_hosts} - used):
        yield f"{name} has an entry in UPSTREAM_HOSTS or UPSTREAM_PRIVATE_HOSTS, and nothing connects to it."


def without_refused(settings: Settings) -> Settings:
    """The same without a DNS server and a file of authorities that are refused: so the rest can be tried."""
    refused: dict[str, Any] = {}
    if any(doh_problems(settings.upstream_doh_url)):
        refused["upstream_doh_url"] = ""
    if any(_ca_problems(settings.upstream_ca_file)):
        refused["upstream_ca_file"] = None
    return settings.model_copy(update=refused) if refused else settings


def doh_problems(url: str, name: str = "UPSTREAM_DOH_URL") -> Iterator[str]:
    """Of a DNS server that is asked over HTTPS; ``name`` is what it is set by."""
    if not url:
        return
    sentence = f"{name}: not an address like https://host[:port]/dns-query"
    try:
        if web_address(url).scheme != "https":
            yield f"{sentence}."
    except ValueError as error:
        yield f"{sentence}{error}."


def _proxy_problems(settings: Settings) -> Iterator[str]:
    """Silent about what was given: it may hold a password."""
    try:
        web_address(settings.coze_api_base)
    except ValueError:
        if settings.coze_api_base:
            return  # there is nothing to be reached through it
    named = settings.named_proxy
    try:
        _ = settings.coze_proxy
    except ValueError as error:
        source = named[0] if named else ""
        hint = "" if source == "UPSTREAM_PROXY" else " UPSTREAM_PROXY=none does without it."
        yield f"{source}: {error if isinstance(error, SocksCredentialError) else _NO_PROXY}.{hint}"


_NO_PROXY = (
    "not a proxy's address like http://host:port or socks5h://user:password@host:port, with %XX for what is "
    "special in a password"
)


def _ca_problems(path: Path | None) -> Iterator[str]:
    if path is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        files.check_is_file(path)
        context.load_verify_locations(cafile=path)
    except ssl.SSLError:
        yield "UPSTREAM_CA_FILE: not certificates in PEM form."
    except (OSError, ValueError) as error:
        yield f"UPSTREAM_CA_FILE: the file can't be read ({getattr(error, 'strerror', 'no file name')})."
    else:
        if not context.cert_store_stats()["x509"]:
            yield "UPSTREAM_CA_FILE: no certificate is in it."
