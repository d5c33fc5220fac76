"""What is wrong with the settings, all of it at once, and what is unwise: a sentence for each."""

from __future__ import annotations

import importlib.util
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm

from broker.settings import ed25519_keys, env_file, files, way_checks
from broker.settings.addresses import (
    EVERYWHERE,
    is_loopback,
    is_origin,
    is_this_machine,
    not_an_origin,
    web_address,
)
from broker.settings.fields import ASYNC_DRIVERS, PUBLISHABLE_PREFIX, Settings, is_given, read_private_key
from broker.settings.oauth_app import MIN_RSA_BITS
from broker.settings.weak_secrets import weakness

OF_THE_COMMAND_LINE = {"BROKER_URL", "BROKER_API_KEY", "BROKER_KEY_ID", "BROKER_SIGNING_SECRET"}
"""Names that look like settings and are options of ``broker upload`` and ``broker token``."""


def problems(settings: Settings) -> list[str]:
    """What keeps the broker from starting with these settings, a sentence for each."""
    return list(_problems(settings))


def warnings(settings: Settings) -> list[str]:
    """What is allowed but unwise, a sentence for each."""
    found = env_file.troubles()
    server, browser = settings.server_app, settings.browser_app
    if server and browser and server.client_id == browser.client_id:
        found.append(
            "COZE_BROWSER_OAUTH_CLIENT_ID is the server's own app: tokens in browsers can do all "
            "that the server can. Create a second OAuth app that may only upload."
        )
    found.extend(f"{name} is no setting of the broker's. Is it misspelt?" for name in _unknown_names())
    if settings.host in EVERYWHERE and not settings.broker_public_url:
        found.append(
            f"BROKER_PUBLIC_URL is not set, so that tokens send browsers to {settings.public_url}, "
            "which is this machine alone."
        )
    if settings.public_url.startswith("https://") and not settings.broker_trusted_proxies:
        found.append(
            "BROKER_TRUSTED_PROXIES is 0, but an https BROKER_PUBLIC_URL needs a proxy before the broker, "
            "and everybody behind that counts as one address. Count the proxies that add to X-Forwarded-For."
        )
    scanner_host = urlsplit(settings.broker_scanner).hostname
    if scanner_host and not is_loopback(scanner_host):
        found.append("BROKER_SCANNER is another machine: sensitive files cross the network in the clear.")
    ring_file = settings.broker_signing_keys_file
    if ring_file and _is_open_to_others(ring_file):
        found.append(
            "BROKER_SIGNING_KEYS_FILE is open to others than its owner: whoever reads it can make tokens. "
            "Give it the mode 0600."
        )
    if server and settings.coze_api_token:
        found.append("COZE_API_TOKEN is not used: the server's OAuth app comes first.")
    found.extend(way_checks.warnings(settings))
    return found


def _unknown_names() -> list[str]:
    given = {name.upper() for name in (*os.environ, *env_file.values()) if name.upper().startswith("BROKER_")}
    return sorted(given - {name.upper() for name in Settings.model_fields} - OF_THE_COMMAND_LINE)


def _problems(settings: Settings) -> Iterator[str]:
    yield from _url_problems("COZE_API_BASE", settings.coze_api_base, required=True)
    yield from _credential_problems(settings)
    yield from way_checks.problems(settings)
    yield from _serving_problems(settings)
    yield from _policy_problems(settings)
    yield from _ring_problems(settings)
    yield from _scanning_problems(settings)
    yield from _oidc_problems(settings)
    yield from store_problems(settings)


def _credential_problems(settings: Settings) -> Iterator[str]:
    """What the broker shows to Coze."""
    yield from _app_problems(settings, "coze_jwt_oauth")
    yield from _app_problems(settings, "coze_browser_oauth")
    token = settings.coze_api_token
    if token is None and not is_given(settings, "coze_jwt_oauth"):
        yield (
            "COZE_API_TOKEN or the four COZE_JWT_OAUTH_* settings: one of them is needed, "
            "or nothing can be uploaded through the broker."
        )
    if token and not _VISIBLE_ASCII.fullmatch(token.get_secret_value()):
        yield "COZE_API_TOKEN has a blank, a line end or another character that no token has."


def _serving_problems(settings: Settings) -> Iterator[str]:
    """Where it is, for which pages, in how many processes."""
    yield from _url_problems("BROKER_PUBLIC_URL", settings.broker_public_url, loopback_only=False)
    for origin in settings.broker_allowed_origins:
        if not is_origin(origin):
            yield f"BROKER_ALLOWED_ORIGINS: {not_an_origin(origin)}"
    if not (settings.broker_page_publishable_key or PUBLISHABLE_PREFIX).startswith(PUBLISHABLE_PREFIX):
        yield (
            f"BROKER_PAGE_PUBLISHABLE_KEY is not a publishable key ({PUBLISHABLE_PREFIX}…); "
            "the page shows it to everyone."
        )
    if settings.broker_workers > 1 and settings.redis_url is None:
        yield (
            "BROKER_WORKERS (--workers): more than one worker needs REDIS_URL. Without Redis each would keep "
            "limits and slots of its own."
        )


def _scanning_problems(settings: Settings) -> Iterator[str]:
    for glob in settings.broker_sensitive_types:
        if not _TYPE_GLOB.fullmatch(glob):
            yield f"BROKER_SENSITIVE_TYPES: {glob!r} is no media type like image/* or application/pdf."
    for glob in settings.broker_sensitive_names:
        if "/" in glob or "\\" in glob:
            yield f"BROKER_SENSITIVE_NAMES: {glob!r} is no file name: folders are never part of one."
    if not settings.broker_scanner:
        if settings.broker_scan == "all":
            yield "BROKER_SCAN is all, but there is no BROKER_SCANNER to scan with."
        return
    try:
        _ = settings.scanner_address
    except ValueError:
        yield "BROKER_SCANNER: not an address like clamd://host:port or clamd:///path/to/clamd.ctl."


_TYPE_GLOB = re.compile(r"[\w!#$&^.+*?-]+/[\w!#$&^.+*?-]+", re.ASCII)


def _oidc_problems(settings: Settings) -> Iterator[str]:
    issuer, audience = settings.broker_oidc_issuer, settings.broker_oidc_audience
    yield from _url_problems("BROKER_OIDC_ISSUER", issuer)
    if issuer and not audience.strip():
        yield (
            "BROKER_OIDC_AUDIENCE is not set: ID tokens that the provider issued to any other app would "
            "be taken, too."
        )
    if audience and not issuer:
        yield "BROKER_OIDC_ISSUER is not set, but BROKER_OIDC_AUDIENCE is."


def _policy_problems(settings: Settings) -> Iterator[str]:
    if settings.broker_token_ttl_seconds > settings.broker_token_max_ttl_seconds:
        yield "BROKER_TOKEN_TTL_SECONDS is longer than BROKER_TOKEN_MAX_TTL_SECONDS."
    types = settings.file_types
    if types is not None and not (types and all(map(_EXTENSION.fullmatch, types))):
        yield "BROKER_FILE_TYPES: not extensions with commas between them, like pdf,png; a lone * takes any."


def store_problems(settings: Settings) -> Iterator[str]:
    """What keeps the database from use."""
    pepper = settings.broker_key_pepper
    weak = pepper and weakness(pepper.get_secret_value())
    if weak:
        yield f"BROKER_KEY_PEPPER {weak}"
    if settings.database_url is not None:
        yield from _database_problems(settings.resolved_database_url)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"{name[:40]!r}" for name in sorted(names))


_POSTGRESQL_OPTIONS = {
    *("database", "host", "passfile", "password", "port", "prepared_statement_cache_size", "ssl"),
    *("target_session_attrs", "user"),
}
"""Those of asyncpg's that are text, and SQLAlchemy's own."""
_VISIBLE_ASCII = re.compile(r"[!-~]+")
_EXTENSION = re.compile(r"[^\s.*/\\]+")


def _ring_problems(settings: Settings) -> Iterator[str]:
    given, path = settings.broker_signing_keys, settings.broker_signing_keys_file
    if given and path:
        yield "BROKER_SIGNING_KEYS and BROKER_SIGNING_KEYS_FILE are both set: the keys come from one place."
    if given:
        yield from _key_text_problems(
            "BROKER_SIGNING_KEYS", lambda: given.get_secret_value().replace("\\n", "\n")
        )
    if path:
        yield from _key_text_problems("BROKER_SIGNING_KEYS_FILE", lambda: files.read_text(path))


def _key_text_problems(name: str, read: Callable[[], str]) -> Iterator[str]:
    try:
        ed25519_keys.parse(read())
    except OSError as error:
        yield f"{name}: the file can't be read ({error.strerror})."
    except UnicodeDecodeError:
        yield f"{name}: {ed25519_keys.NOT_KEYS}."
    except ValueError as error:
        yield f"{name}: {error}."


def _is_open_to_others(path: Path) -> bool:
    try:
        return bool(path.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP))
    except OSError:
        return False  # which is a problem, and told as one


def _database_problems(url: str) -> Iterator[str]:
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - most commands need no database
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415 - the same

    try:
        parts = make_url(url)
        driver = parts.drivername
    except (ArgumentError, ValueError):
        driver = ""
    if driver == ASYNC_DRIVERS["sqlite"] and parts.database in (None, "", ":memory:"):
        yield "DATABASE_URL: a database in memory forgets its keys; name a file, like sqlite:////var/lib/broker.db."
    elif driver not in ASYNC_DRIVERS.values() or (parts.database or "").startswith("file:"):
        yield "DATABASE_URL: not an address like sqlite:///path or postgresql://user:password@host/name."
    elif driver.endswith("asyncpg") and importlib.util.find_spec("asyncpg") is None:
        yield "DATABASE_URL: PostgreSQL needs the extra: pip install 'coze-upload-broker[postgresql]'."
    elif driver.endswith("asyncpg") and (unknown := set(parts.query) - _POSTGRESQL_OPTIONS):
        yield (
            f"DATABASE_URL: {_listed(unknown)} can't be set there; {_listed(_POSTGRESQL_OPTIONS)} can, "
            "and sslmode stands for ssl."
        )


def _url_problems(
    name: str, url: str, *, required: bool = False, loopback_only: bool = True
) -> Iterator[str]:
    if not url:
        if required:
            yield f"{name} is not set. Use https://api.coze.cn or https://api.coze.com: your account's own."
        return
    try:
        parts = web_address(url)
    except ValueError as error:
        yield f"{name}: not an address like https://host[:port]{error}."
        return
    if loopback_only and parts.scheme == "http" and not is_this_machine(parts.hostname or ""):
        yield f"{name}: plain http would send credentials in the clear. Use https; http is for loopback only."


def _app_problems(settings: Settings, prefix: str) -> Iterator[str]:
    if not is_given(settings, prefix):
        return
    name = prefix.upper()
    for part in ("client_id", "public_key_id"):
        if getattr(settings, f"{prefix}_{part}") is None:
            yield f"{name}_{part.upper()} is not set, but other settings of that OAuth app are."
    if all(getattr(settings, f"{prefix}_private_key{end}") is None for end in ("", "_file_path")):
        yield f"{name}_PRIVATE_KEY (or _FILE_PATH) is not set, but other settings of that OAuth app are."
        return
    try:
        read_private_key(settings, prefix)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield f"{name}_PRIVATE_KEY (or _FILE_PATH): {_key_trouble(error)}"


def _key_trouble(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the file can't be read ({error.strerror})."
    return f"not an RSA private key of {MIN_RSA_BITS} bits or more in PEM form, without a passphrase."
