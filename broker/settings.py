"""Every setting, read once from the environment and ``.env``, checked together, reported together.

A setting's name in the environment is its field's name in capitals. Secrets are ``SecretStr`` and
can't be printed.
"""

from __future__ import annotations

import functools
import importlib.util
import ipaddress
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIN_RSA_BITS = 2048
MIN_SECRET_LENGTH = 32
COZE_MAX_UPLOAD_BYTES = 536_870_912
COZE_MAX_TTL_SECONDS = 86_399
CLAMD_PORT = 3310
COZE_FILE_TYPES = (
    "doc,docx,xls,xlsx,ppt,pptx,pdf,numbers,csv,cpp,py,java,c,"
    "jpg,jpeg,jpg2,png,gif,webp,heic,heif,bmp,pcd,tiff,"
    "wav,mp3,flac,m4a,aac,ogg,wma,midi,mp4,avi,mov,3gp,3gpp,flv,webm,wmv,rmvb,m4v,mkv,"
    "rar,zip,7z,gz,gzip,bz2"
)
"""The extensions that Coze documents, and ``jpeg``."""
ANY_FILE_TYPE = "*"
OF_THE_COMMAND_LINE = {"BROKER_URL", "BROKER_API_KEY"}
"""Names that look like settings and are options of ``broker upload`` and ``broker token``."""
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - names addresses
"""Addresses to listen on that are none to be reached at, and what reaches them from this machine."""
SECRET_PREFIX, PUBLISHABLE_PREFIX = "cub_sk_", "cub_pk_"
"""What API keys begin with; a key that begins otherwise is none."""


class SettingsError(Exception):
    """What is wrong with the settings, all of it at once: ``problems`` has a sentence for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class OAuthApp:
    """A Coze OAuth app of the JWT kind: who it is, and the key that proves it."""

    client_id: str
    public_key_id: str
    private_key: RSAPrivateKey

    def __repr__(self) -> str:
        return f"OAuthApp({self.client_id!r})"


class Settings(BaseSettings):
    """The settings as they were given. ``load`` is the way to get checked ones."""

    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, env_ignore_empty=True)

    # Coze
    coze_api_base: str = Field(
        default="",
        description="Where Coze is: `https://api.coze.cn`, `https://api.coze.com` or your own Coze Studio. "
        "Required.",
    )
    coze_api_token: SecretStr | None = Field(
        default=None,
        description="The server's PAT or SAT. Used for the proxy route when no server OAuth app is set.",
    )
    coze_jwt_oauth_client_id: str | None = Field(default=None, description="The server's OAuth app: its id.")
    coze_jwt_oauth_public_key_id: str | None = Field(
        default=None, description="The server's OAuth app: fingerprint of its public key (`kid`)."
    )
    coze_jwt_oauth_private_key: SecretStr | None = Field(
        default=None,
        description="The server's OAuth app: its private key as PEM; `\\n` may stand for a line end.",
    )
    coze_jwt_oauth_private_key_file_path: Path | None = Field(
        default=None,
        description="The server's OAuth app: a file with its private key, instead of the key itself.",
    )
    coze_browser_oauth_client_id: str | None = Field(
        default=None,
        description="The browser's OAuth app, which may only upload: its id. Without it nothing goes direct.",
    )
    coze_browser_oauth_public_key_id: str | None = Field(
        default=None, description="The browser's OAuth app: fingerprint of its public key (`kid`)."
    )
    coze_browser_oauth_private_key: SecretStr | None = Field(
        default=None,
        description="The browser's OAuth app: its private key as PEM; `\\n` may stand for a line end.",
    )
    coze_browser_oauth_private_key_file_path: Path | None = Field(
        default=None,
        description="The browser's OAuth app: a file with its private key, instead of the key itself.",
    )

    # The server
    host: str = Field(default="127.0.0.1", description="The address to listen on.")
    port: int = Field(
        default=2026, ge=0, le=65535, description="The port to listen on; `0` takes a free one."
    )
    broker_public_url: str = Field(
        default="",
        description="The broker's address as browsers see it; goes into tokens and answers. "
        "By default `http://HOST:PORT`.",
    )
    broker_allowed_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Origins whose pages may call the broker, separated by commas: "
        "`https://app.example.com`. The broker's own page is always allowed.",
    )
    broker_data_dir: Path = Field(
        default=Path("broker-data"), description="Where the database and the generated secrets live."
    )
    database_url: SecretStr | None = Field(  # it may hold the database's password
        default=None,
        description="The database, as an SQLAlchemy URL. By default SQLite in `BROKER_DATA_DIR`.",
    )
    broker_page_publishable_key: str | None = Field(
        default=None,
        description="A publishable key for the broker's own page. Without it the page asks for one.",
    )

    # Policy
    broker_direct_max_bytes: int = Field(
        default=10_000_000,
        ge=0,
        description="Files smaller than this may go direct; `0` sends everything through.",
    )
    broker_max_upload_bytes: int = Field(
        default=COZE_MAX_UPLOAD_BYTES,
        ge=1,
        le=COZE_MAX_UPLOAD_BYTES,
        description="The largest file that is taken; Coze's own limit is 512 MiB.",
    )
    broker_token_ttl_seconds: int = Field(
        default=120, ge=1, description="How long a token lives when the caller does not say."
    )
    broker_token_max_ttl_seconds: int = Field(
        default=900, ge=1, le=COZE_MAX_TTL_SECONDS, description="The longest life a caller may ask for."
    )
    broker_upload_max_seconds: int = Field(
        default=3600,
        ge=1,
        description="How long after its token's expiry an upload that has begun may go on.",
    )
    broker_file_types: str = Field(
        default=COZE_FILE_TYPES,
        description="The extensions of files that are taken, separated by commas; those that Coze documents. "
        "`*` takes any: Coze Studio does.",
    )
    broker_content_mismatch: Literal["refuse", "relabel", "ignore"] = Field(
        default="refuse",
        description="What becomes of a file whose name, type and content disagree: `refuse` it; `relabel` "
        "it, so that it goes on under the extension that its content tells, if that is one that is taken; "
        "or `ignore` it and let Coze judge.",
    )

    # Sensitive files
    broker_sensitive_types: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Media types whose files are sensitive, separated by commas, `*` for any part: "
        "`application/pdf,image/*`. A file of unknown type then is, too.",
    )
    broker_sensitive_names: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="File names that are sensitive, separated by commas, `*` for any part, in any case: "
        "`*.pdf,contract*`. A file whose name is not told then is, too.",
    )
    broker_scanner: str = Field(
        default="",
        description="ClamAV's `clamd`, which sensitive files must pass: `clamd://127.0.0.1:3310`, or its "
        "socket as `clamd:///run/clamav/clamd.ctl`. Without it they only never go direct.",
    )
    broker_scan: Literal["sensitive", "all"] = Field(
        default="sensitive",
        description="`sensitive`: what is sensitive is scanned. `all`: every file counts as sensitive, so "
        "none goes direct.",
    )
    broker_scanner_max_bytes: int = Field(
        default=26_214_400,
        ge=1,
        description="The largest file that is scanned; a larger one is refused. No more than clamd's "
        "`StreamMaxLength` and `MaxFileSize` (25M on Debian): clamd calls clean what is over the latter.",
    )
    broker_scanner_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long the scanner may take to connect, to read on, or to judge a whole file.",
    )

    # Secrets of our own
    broker_signing_keys: SecretStr | None = Field(
        default=None,
        description="Ed25519 private keys as PEM, one after another; the first signs, all verify. "
        "By default generated in `BROKER_DATA_DIR`.",
    )
    broker_key_pepper: SecretStr | None = Field(
        default=None,
        description="The secret that API keys are hashed with, 32 characters or more. "
        "By default generated in `BROKER_DATA_DIR`.",
    )

    # Time and load
    broker_connect_timeout_seconds: float = Field(
        default=15.0, gt=0, description="How long connecting to Coze may take."
    )
    broker_read_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        description="How long Coze may take to read on, or to answer once it has the whole file.",
    )
    broker_head_timeout_seconds: float = Field(
        default=15.0, gt=0, description="How long a caller may take for its request's address and headers."
    )
    broker_client_idle_seconds: float = Field(
        default=30.0,
        gt=0,
        description="How long a caller may send nothing of an upload, or take nothing of an answer.",
    )
    broker_min_bytes_per_second: int = Field(
        default=1000,
        ge=0,
        description="How fast a caller must send, on average over `BROKER_CLIENT_IDLE_SECONDS`; "
        "`0` lets anyone trickle.",
    )
    broker_max_inflight_uploads: int = Field(
        default=1000,
        ge=0,
        description="How many uploads may be in the broker at once, running or waiting; more are refused "
        "with 503. `0` sets no bound.",
    )
    broker_max_inflight_uploads_per_key: int = Field(
        default=0, ge=0, description="The same for each API key and the tokens minted with it."
    )
    broker_max_upstream_connections: int = Field(
        default=64,
        ge=1,
        description="How many uploads to Coze run at once; more wait, and keys take turns in waiting.",
    )
    broker_pool_wait_seconds: float = Field(
        default=30.0, gt=0, description="How long an upload may wait for a free connection to Coze."
    )
    broker_idempotency_ttl_seconds: int = Field(
        default=86_400,
        ge=60,
        description="How long an upload's answer is kept for its `Idempotency-Key`.",
    )
    broker_shutdown_grace_seconds: int = Field(
        default=30, ge=0, description="How long running uploads may go on after SIGTERM."
    )

    # Logs
    broker_log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console`, or `auto`: coloured on a terminal, JSON elsewhere."
    )
    broker_log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )

    @field_validator(
        "broker_allowed_origins", "broker_sensitive_types", "broker_sensitive_names", mode="before"
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("coze_api_base", "broker_public_url")
    @classmethod
    def _without_trailing_slash(cls, value: str) -> str:
        return value.rstrip("/")

    @property
    def public_url(self) -> str:
        """Where the broker is, as others see it; no trailing slash."""
        host = EVERYWHERE.get(self.host, self.host)
        return self.broker_public_url or http_url(host, self.port)

    @property
    def public_origin(self) -> str:
        """The origin of the broker's own page."""
        return origin_of(self.public_url)

    @property
    def allowed_origins(self) -> tuple[str, ...]:
        """Every origin whose pages may call the broker."""
        return tuple(dict.fromkeys((self.public_origin, *self.broker_allowed_origins)))

    @property
    def file_types(self) -> frozenset[str] | None:
        """The extensions of files that are taken, in lower case and without a dot; None for any."""
        names = [name.strip().removeprefix(".").lower() for name in self.broker_file_types.split(",")]
        return None if names == [ANY_FILE_TYPE] else frozenset(filter(None, names))

    @property
    def coze_host(self) -> str:
        """Coze's host, with its port where it is not the usual one: the ``aud`` of an assertion."""
        return urlsplit(self.coze_api_base).netloc

    @property
    def server_app(self) -> OAuthApp | None:
        """The OAuth app of the proxy route."""
        return _oauth_app(self, "coze_jwt_oauth")

    @property
    def browser_app(self) -> OAuthApp | None:
        """The OAuth app whose tokens may reach a browser."""
        return _oauth_app(self, "coze_browser_oauth")

    @property
    def scanner_address(self) -> str | tuple[str, int]:
        """Where clamd is: the path of its socket, or host and port. Raises ``ValueError`` if not set well."""
        parts = urlsplit(self.broker_scanner)
        is_bare = not (parts.query or parts.fragment or "@" in parts.netloc)
        if parts.scheme == "clamd" and is_bare:
            if parts.hostname and parts.path in ("", "/") and parts.port != 0:
                return parts.hostname, parts.port or CLAMD_PORT
            if not parts.netloc and parts.path.startswith("/") and len(parts.path) > 1:
                return parts.path
        raise ValueError(self.broker_scanner)

    @property
    def resolved_database_url(self) -> str:
        """The database as an SQLAlchemy URL with an async driver."""
        if self.database_url is None:
            return f"sqlite+aiosqlite:///{(self.broker_data_dir / 'broker.db').absolute()}"
        scheme, _, rest = self.database_url.get_secret_value().partition("://")
        return f"{ASYNC_DRIVERS.get(scheme, scheme)}://{rest}"


ASYNC_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}


def load(**overrides: Any) -> Settings:
    """Read and check the settings; ``overrides`` (by field name) win over the environment.

    Raises :class:`SettingsError` that names every problem.
    """
    settings, found = _read(overrides)
    found += problems(settings)
    if found:
        raise SettingsError(found)
    return settings


def load_for_store() -> Settings:
    """Read the settings and check what the database needs; for commands that talk to no Coze."""
    settings, found = _read({})
    found += _store_problems(settings)
    if found:
        raise SettingsError(found)
    return settings


def read() -> Settings:
    """Read the settings as they are, good or bad; ``problems`` tells which.

    Raises :class:`SettingsError`, with every problem, when a value is of no use at all.
    """
    settings, found = _read({})
    if found:
        raise SettingsError(found + problems(settings))
    return settings


def _read(overrides: dict[str, Any]) -> tuple[Settings, list[str]]:
    """The settings, and a sentence for each value that can't be one; its default stands in for it,
    so that the rest can be checked all the same.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given), []
    except ValidationError as error:
        found = error.errors()
    except (UnicodeDecodeError, OSError) as error:
        raise SettingsError(
            [f".env: the file can't be read as UTF-8 text ({type(error).__name__})."]
        ) from None
    defaults = {str(each["loc"][0]): Settings.model_fields[str(each["loc"][0])].default for each in found}
    return Settings(**{**given, **defaults}), [_sentence(each) for each in found]


def problems(settings: Settings) -> list[str]:
    """What keeps the broker from starting with these settings, a sentence for each."""
    return list(_problems(settings))


def warnings(settings: Settings) -> list[str]:
    """What is allowed but unwise, a sentence for each."""
    found = []
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
    scanner_host = urlsplit(settings.broker_scanner).hostname
    if scanner_host and not is_loopback(scanner_host):
        found.append("BROKER_SCANNER is another machine: sensitive files cross the network in the clear.")
    if server and settings.coze_api_token:
        found.append("COZE_API_TOKEN is not used: the server's OAuth app comes first.")
    return found


def _unknown_names() -> list[str]:
    given = {
        name.upper() for name in (*os.environ, *dotenv_values(".env")) if name.upper().startswith("BROKER_")
    }
    return sorted(given - {name.upper() for name in Settings.model_fields} - OF_THE_COMMAND_LINE)


def source_of(name: str) -> str:
    """Where the value of a field comes from: ``environment``, ``.env`` or ``default``."""
    env_name = name.upper()
    if any(key.upper() == env_name and value for key, value in os.environ.items()):
        return "environment"
    if any(key.upper() == env_name and value for key, value in dotenv_values(".env").items()):
        return ".env"
    return "default"


def origin_of(url: str) -> str:
    """The origin of a URL as a browser writes it: lower case, no port where it is the usual one."""
    parts = urlsplit(url)
    usual_port = {"http": 80, "https": 443}.get(parts.scheme)
    port = "" if parts.port in (None, usual_port) else f":{parts.port}"
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else (parts.hostname or "")
    return f"{parts.scheme}://{host}{port}"


def http_url(host: str, port: int) -> str:
    """The address of a server on this machine; an IPv6 address gets its brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_origin(value: str) -> bool:
    """Whether ``value`` is exactly what a browser would send in ``Origin``; ``*`` and ``null`` are not."""
    try:
        return bool(_ORIGIN.fullmatch(value)) and origin_of(value) == value
    except ValueError:
        return False


# Browsers write a host in ASCII; a wildcard is no host, and would match nothing.
_ORIGIN = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:[0-9]+)?")


def is_loopback(host: str | None) -> bool:
    """Whether a host name or address can only mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _problems(settings: Settings) -> Iterator[str]:
    yield from _url_problems("COZE_API_BASE", settings.coze_api_base, required=True)
    yield from _url_problems("BROKER_PUBLIC_URL", settings.broker_public_url, loopback_only=False)
    for origin in settings.broker_allowed_origins:
        if not is_origin(origin):
            yield f"BROKER_ALLOWED_ORIGINS: {not_an_origin(origin)}"
    yield from _app_problems(settings, "coze_jwt_oauth")
    yield from _app_problems(settings, "coze_browser_oauth")
    if settings.coze_api_token is None and not _is_given(settings, "coze_jwt_oauth"):
        yield (
            "COZE_API_TOKEN or the four COZE_JWT_OAUTH_* settings: one of them is needed, "
            "or nothing can be uploaded through the broker."
        )
    yield from _policy_problems(settings)
    token, keys = settings.coze_api_token, settings.broker_signing_keys
    if token and not _VISIBLE_ASCII.fullmatch(token.get_secret_value()):
        yield "COZE_API_TOKEN has a blank, a line end or another character that no token has."
    if keys and not _are_signing_keys(keys.get_secret_value()):
        yield "BROKER_SIGNING_KEYS: not Ed25519 private keys in PEM form, one after another."
    if not (settings.broker_page_publishable_key or PUBLISHABLE_PREFIX).startswith(PUBLISHABLE_PREFIX):
        yield (
            f"BROKER_PAGE_PUBLISHABLE_KEY is not a publishable key ({PUBLISHABLE_PREFIX}…); "
            "the page shows it to everyone."
        )
    yield from _scanning_problems(settings)
    yield from _store_problems(settings)


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


def _policy_problems(settings: Settings) -> Iterator[str]:
    if settings.broker_token_ttl_seconds > settings.broker_token_max_ttl_seconds:
        yield "BROKER_TOKEN_TTL_SECONDS is longer than BROKER_TOKEN_MAX_TTL_SECONDS."
    types = settings.file_types
    if types is not None and not (types and all(map(_EXTENSION.fullmatch, types))):
        yield "BROKER_FILE_TYPES: not extensions with commas between them, like pdf,png; a lone * takes any."


def _store_problems(settings: Settings) -> Iterator[str]:
    pepper = settings.broker_key_pepper
    if pepper and len(pepper.get_secret_value()) < MIN_SECRET_LENGTH:
        yield f"BROKER_KEY_PEPPER is shorter than {MIN_SECRET_LENGTH} characters."
    if settings.database_url is not None:
        yield from _database_problems(settings.resolved_database_url)


_VISIBLE_ASCII = re.compile(r"[!-~]+")
_EXTENSION = re.compile(r"[^\s.*/\\]+")


def _are_signing_keys(text: str) -> bool:
    before, *blocks = text.replace("\\n", "\n").split("-----BEGIN ")
    try:
        keys = [load_pem_private_key(f"-----BEGIN {block}".encode(), password=None) for block in blocks]
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return not before.strip() and bool(keys) and all(isinstance(key, Ed25519PrivateKey) for key in keys)


def _database_problems(url: str) -> Iterator[str]:
    from sqlalchemy.engine import make_url  # noqa: PLC0415 - most commands need no database
    from sqlalchemy.exc import ArgumentError  # noqa: PLC0415

    try:
        parts = make_url(url)
        driver = parts.drivername
    except (ArgumentError, ValueError):
        driver = ""
    if driver == ASYNC_DRIVERS["sqlite"] and parts.database in (None, "", ":memory:"):
        yield "DATABASE_URL: a database in memory forgets its keys; name a file, like sqlite:////var/lib/broker.db."
    elif driver not in ASYNC_DRIVERS.values():
        yield "DATABASE_URL: not an address like sqlite:///path or postgresql://user:password@host/name."
    elif driver.endswith("asyncpg") and importlib.util.find_spec("asyncpg") is None:
        yield "DATABASE_URL: PostgreSQL needs the extra: pip install 'coze-upload-broker[postgresql]'."


def not_an_origin(value: str) -> str:
    """What to tell whoever wrote ``value`` where an origin belongs."""
    return (
        f"{value!r} is not an origin. Write it as a browser does, "
        "like https://app.example.com; '*' is never allowed."
    )


def _url_problems(
    name: str, url: str, *, required: bool = False, loopback_only: bool = True
) -> Iterator[str]:
    if not url:
        if required:
            yield f"{name} is not set. Use https://api.coze.cn or https://api.coze.com: your account's own."
        return
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole or "@" in parts.netloc or parts.query or parts.fragment:
        yield f"{name}: not an address like https://host[:port]."
    elif loopback_only and parts.scheme == "http" and not is_loopback(parts.hostname):
        yield f"{name}: plain http would send credentials in the clear. Use https; http is for loopback only."


def _is_given(settings: Settings, prefix: str) -> bool:
    names = ("client_id", "public_key_id", "private_key", "private_key_file_path")
    return any(getattr(settings, f"{prefix}_{name}") is not None for name in names)


def _app_problems(settings: Settings, prefix: str) -> Iterator[str]:
    if not _is_given(settings, prefix):
        return
    name = prefix.upper()
    for part in ("client_id", "public_key_id"):
        if getattr(settings, f"{prefix}_{part}") is None:
            yield f"{name}_{part.upper()} is not set, but other settings of that OAuth app are."
    if all(getattr(settings, f"{prefix}_private_key{end}") is None for end in ("", "_file_path")):
        yield f"{name}_PRIVATE_KEY (or _FILE_PATH) is not set, but other settings of that OAuth app are."
        return
    try:
        _private_key(settings, prefix)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        yield f"{name}_PRIVATE_KEY (or _FILE_PATH): {_key_trouble(error)}"


def _key_trouble(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the file can't be read ({error.strerror})."
    return f"not an RSA private key of {MIN_RSA_BITS} bits or more in PEM form, without a passphrase."


def _oauth_app(settings: Settings, prefix: str) -> OAuthApp | None:
    if not _is_given(settings, prefix):
        return None
    return OAuthApp(
        client_id=getattr(settings, f"{prefix}_client_id"),
        public_key_id=getattr(settings, f"{prefix}_public_key_id"),
        private_key=_private_key(settings, prefix),
    )


def _private_key(settings: Settings, prefix: str) -> RSAPrivateKey:
    text: SecretStr | None = getattr(settings, f"{prefix}_private_key")
    path: Path | None = getattr(settings, f"{prefix}_private_key_file_path")
    if text is not None:
        pem = text.get_secret_value().replace("\\n", "\n").encode()
    elif path is not None:
        pem = path.read_bytes()
    else:
        raise ValueError
    return _parse_rsa(pem)


@functools.cache
def _parse_rsa(pem: bytes) -> RSAPrivateKey:
    """Parsed once: cryptography checks a private key when it loads it, which takes tens of milliseconds."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, RSAPrivateKey) or key.key_size < MIN_RSA_BITS:
        raise ValueError
    return key


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"]).upper()
    return f"{name}: {problem['msg']}."
