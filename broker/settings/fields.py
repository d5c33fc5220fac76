"""Every setting: its name in the environment is its field's name in capitals. Secrets are ``SecretStr`` and
can't be printed.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from broker.settings import files, hosts, proxy
from broker.settings.addresses import (
    EVERYWHERE,
    authority_of,
    http_url,
    is_this_machine,
    origin_of,
)
from broker.settings.oauth_app import OAuthApp, parse_rsa

COZE_MAX_UPLOAD_BYTES = 536_870_912
COZE_MAX_TTL_SECONDS = 86_399
MAX_GRACE_SECONDS = 366 * 86_400
"""How long a rotated key's old secret may work on at most."""
MAX_SECONDS = 366 * 86_400
"""The longest time that a setting may name."""
MAX_SHUTDOWN_SECONDS = 86_400
MAX_NUMBER = 2**53 - 1
"""The largest number of all others: databases and Redis have whole ones only so far."""
CLAMD_PORT = 3310
COZE_FILE_TYPES = (
    "doc,docx,xls,xlsx,ppt,pptx,pdf,numbers,csv,cpp,py,java,c,"
    "jpg,jpeg,jpg2,png,gif,webp,heic,heif,bmp,pcd,tiff,"
    "wav,mp3,flac,m4a,aac,ogg,wma,midi,mp4,avi,mov,3gp,3gpp,flv,webm,wmv,rmvb,m4v,mkv,"
    "rar,zip,7z,gz,gzip,bz2"
)
"""The extensions that Coze documents, and ``jpeg``."""
ANY_FILE_TYPE = "*"
SECRET_PREFIX, PUBLISHABLE_PREFIX = "cub_sk_", "cub_pk_"
"""What API keys begin with; a key that begins otherwise is none."""


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

    # The way to Coze
    upstream_hosts: Annotated[dict[str, tuple[str, ...]], NoDecode] = Field(
        default={},
        description="Fixed addresses of hosts, instead of what DNS says: "
        "`api.coze.cn=203.0.113.7 203.0.113.8, other.example=2001:db8::1`.",
    )
    upstream_private_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        description="Hosts that DNS may place in a private network, separated by commas; of all others such "
        "an address is refused. Not needed for `localhost`, for an address in `COZE_API_BASE`, nor for "
        "hosts in `UPSTREAM_HOSTS`.",
    )
    upstream_doh_url: str = Field(
        default="",
        description="A DNS server that is asked over HTTPS (RFC 8484): `https://dns.example/dns-query`. "
        "Without it the system's resolver is asked.",
    )
    upstream_proxy: str = Field(  # it may hold the proxy's password
        default="environment",
        repr=False,
        description="The proxy that Coze is reached through, as `http://`, `https://`, `socks5://` or "
        "`socks5h://host:port`, with `user:password@` where it asks for them; `none`; or `environment`: what "
        "`HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say.",
    )
    upstream_ca_file: Path | None = Field(
        default=None,
        description="A file with certificates (PEM) that are trusted on the way to Coze besides the built-in "
        "ones.",
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
    redis_url: SecretStr | None = Field(  # it may hold Redis's password
        default=None,
        description="Redis or Valkey, for several workers: `redis://host:6379/0`. Without it limits and "
        "slots are this one process's.",
    )
    broker_workers: int = Field(
        default=1, ge=1, le=256, description="How many processes serve; more than one need `REDIS_URL`."
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

    # Who may call
    broker_oidc_issuer: str = Field(
        default="",
        description="Your OpenID provider, exactly as it calls itself. Its users may then mint tokens with "
        "their ID token; who they are becomes the token's subject.",
    )
    broker_oidc_audience: str = Field(
        default="", description="The client id that ID tokens must be issued to. Required with an issuer."
    )
    broker_trusted_proxies: int = Field(
        default=0,
        ge=0,
        le=16,
        description="How many proxies stand before the broker and each add an address to `X-Forwarded-For`. "
        "The caller is counted from the right; `0` takes nobody's word for it.",
    )
    broker_token_max_uses: int = Field(
        default=10,
        ge=1,
        le=1000,
        description="The most uploads that a caller may ask one token to be good for.",
    )
    broker_rotation_grace_seconds: int = Field(
        default=86_400,
        ge=0,
        le=MAX_GRACE_SECONDS,
        description="How long a rotated API key's old secret works on, when the caller does not say.",
    )

    # Limits
    enable_rate_limit: bool = Field(default=True, description="Whether callers are limited at all.")
    rate_limit_requests: int = Field(
        default=100,
        ge=1,
        description="How many requests each subject, and each address that pages call from, may make in a "
        "window.",
    )
    rate_limit_window: int = Field(default=60, ge=1, description="The window, in seconds.")
    broker_rate_limit_bytes: int = Field(
        default=0,
        ge=0,
        description="How many bytes each subject, and each address that pages call from, may upload in a "
        "window; `0` sets no bound.",
    )
    broker_rate_limit_requests_per_key: int = Field(
        default=0,
        ge=0,
        description="How many requests an API key without limits of its own may make in a window; "
        "`0` sets no bound.",
    )
    broker_rate_limit_requests_per_origin: int = Field(
        default=0,
        ge=0,
        description="How many requests the pages of one origin may make in a window; `0` sets no bound.",
    )
    broker_max_failed_credentials: int = Field(
        default=30,
        ge=1,
        description="How many credentials that are not valid an address may send in a minute.",
    )
    broker_upstream_uploads_per_second: float = Field(
        default=10.0,
        ge=0,
        description="How many uploads a second Coze takes of the whole account: 10 of a personal one, "
        "20 of a team's. All workers share it, and what is beyond waits. `0` sets no bound.",
    )
    broker_upstream_wait_seconds: float = Field(
        default=10.0, ge=0, description="How long an upload may wait for that before it is refused with 429."
    )

    broker_upstream_pause_seconds: float = Field(
        default=30.0,
        ge=0,
        description="When Coze says that the account sends too much (429, code 4013), all workers leave it "
        "alone for as long as it asks, and no longer than this. `0`: they go on.",
    )

    # Secrets of our own
    broker_signing_keys: SecretStr | None = Field(
        default=None,
        description="Ed25519 private keys as PEM, one after another; the first signs, all verify. "
        "By default generated in `BROKER_DATA_DIR`.",
    )
    broker_signing_keys_file: Path | None = Field(
        default=None,
        description="A file with those keys, instead of the keys themselves; read again when it changes.",
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
    broker_upstream_retry_seconds: float = Field(
        default=15.0,
        ge=0,
        description="How long calls to Coze that failed may be repeated for one request, all pauses "
        "included; only where repeating is safe. `0`: never.",
    )
    broker_breaker_failures: int = Field(
        default=5,
        ge=0,
        description="After how many failed calls in a row Coze counts as down: each worker then refuses with "
        "503 `upstream_down` at once. `0`: never.",
    )
    broker_breaker_open_seconds: float = Field(
        default=10.0, gt=0, description="How long it refuses before it tries a few calls again."
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
        description="How many uploads may be in one worker at once, running or waiting; more are refused "
        "with 503. `0` sets no bound.",
    )
    broker_max_inflight_uploads_per_key: int = Field(
        default=0,
        ge=0,
        description="How many uploads an API key without limits of its own, and the tokens minted with it, "
        "may have running at once, in all workers; more are refused with 429. `0` sets no bound.",
    )
    broker_max_inflight_uploads_per_subject: int = Field(
        default=0, ge=0, description="The same for each subject."
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
        default=30,
        ge=0,
        le=MAX_SHUTDOWN_SECONDS,
        description="How long running uploads may go on after SIGTERM.",
    )

    broker_audit_spool_bytes: int = Field(
        default=67_108_864,
        ge=0,
        description="How many bytes of audit rows each worker may keep in files in `BROKER_DATA_DIR` while "
        "the database takes none.",
    )

    # Logs
    broker_log_format: Literal["auto", "json", "console"] = Field(
        default="auto", description="`json`, `console`, or `auto`: coloured on a terminal, JSON elsewhere."
    )
    broker_log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least level that is logged."
    )

    @field_validator("coze_api_base", "upstream_doh_url", "upstream_proxy", "upstream_ca_file", mode="before")
    @classmethod
    def _without_blanks(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        return value.strip() or cls.model_fields[str(info.field_name)].default

    @field_validator("upstream_proxy")
    @classmethod
    def _word_in_lower_case(cls, value: str) -> str:
        return value.lower() if value.lower() in proxy.WORDS else value

    @field_validator("upstream_hosts", mode="before")
    @classmethod
    def _addresses(cls, value: Any) -> Any:
        try:
            return hosts.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            raise PydanticCustomError("hosts", "{sentence}", {"sentence": str(error)}) from None

    @field_validator("upstream_private_hosts")
    @classmethod
    def _canonical(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(hosts.canonical, value))

    @field_validator(
        "broker_allowed_origins",
        "broker_sensitive_types",
        "broker_sensitive_names",
        "upstream_private_hosts",
        mode="before",
    )
    @classmethod
    def _split(cls, value: Any) -> Any:
        return (
            tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, str)
            else value
        )

    @field_validator("*")
    @classmethod
    def _within_reach(cls, value: Any, info: ValidationInfo) -> Any:
        is_a_time = str(info.field_name).endswith(("_seconds", "_window"))
        most = MAX_SECONDS if is_a_time else MAX_NUMBER
        if isinstance(value, (int, float)) and value > most:
            raise PydanticCustomError("too_much", "Input should be {most} or less", {"most": most})
        return value

    # Not of the OIDC issuer: it must be written exactly as the provider writes it.
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
        return authority_of(self.coze_api_base)

    @property
    def coze_proxy(self) -> proxy.Proxy | None:
        """The proxy that Coze is reached through. Raises ``ValueError`` if that is not set well."""
        named = self.named_proxy
        return None if named is None else proxy.parse(named[1])

    @property
    def named_proxy(self) -> tuple[str, str] | None:
        """Who names a proxy for Coze, and its URL. What is on this machine is reached without one: there,
        and only there, plain http is allowed.
        """
        parts = urlsplit(self.coze_api_base)
        host = parts.hostname or ""
        if self.upstream_proxy == "none" or is_this_machine(host):
            return None
        if self.upstream_proxy == "environment":
            return proxy.of_environment(host, parts.port or 443)
        return "UPSTREAM_PROXY", self.upstream_proxy

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
        driver = ASYNC_DRIVERS.get(scheme, scheme)
        return f"{driver}://{_LIBPQ_TLS.sub('ssl=', rest) if driver == ASYNC_DRIVERS['postgresql'] else rest}"


ASYNC_DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
}
_LIBPQ_TLS = re.compile("(?<=[?&])sslmode=(?=[^@]*$)")
"""What the rest of the world writes where asyncpg has ``ssl``; not in a password, which an ``@`` follows."""


def is_given(settings: Settings, prefix: str) -> bool:
    names = ("client_id", "public_key_id", "private_key", "private_key_file_path")
    return any(getattr(settings, f"{prefix}_{name}") is not None for name in names)


def _oauth_app(settings: Settings, prefix: str) -> OAuthApp | None:
    if not is_given(settings, prefix):
        return None
    return OAuthApp(
        client_id=getattr(settings, f"{prefix}_client_id"),
        public_key_id=getattr(settings, f"{prefix}_public_key_id"),
        private_key=read_private_key(settings, prefix),
    )


def read_private_key(settings: Settings, prefix: str) -> RSAPrivateKey:
    text: SecretStr | None = getattr(settings, f"{prefix}_private_key")
    path: Path | None = getattr(settings, f"{prefix}_private_key_file_path")
    if text is not None:
        pem = text.get_secret_value().replace("\\n", "\n").encode()
    elif path is not None:
        pem = files.read_bytes(path)
    else:
        raise ValueError
    return parse_rsa(pem)
