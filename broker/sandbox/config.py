"""What one sandbox accepts: its OAuth apps, its tokens and its limits."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

UPLOAD_FILE = "uploadFile"
RETRIEVE_FILE = "retrieveFile"


@dataclass(frozen=True)
class OAuthApp:
    """A JWT app: whoever holds the private key of `kid` may ask for tokens with these permissions."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    client_id: str
    kid: str
    public_key_pem: str = field(repr=False)
    permissions: frozenset[str]


@dataclass(frozen=True)
class StaticToken:
    """A personal (`pat_`) or service (`sat_`) access token; it does not expire here."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    token: str = field(repr=False)
    permissions: frozenset[str]


@dataclass(frozen=True)
class SandboxConfig:
    """`audience` is the bare host[:port] that an assertion's `aud` must equal."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    audience: str
    apps: tuple[OAuthApp, ...] = ()
    tokens: tuple[StaticToken, ...] = ()
    max_file_bytes: int = 512 * 1024 * 1024
    # Coze advises more than 32 bytes; coze-go sends 16 characters and needs a smaller number here.
    min_jti_chars: int = 32
    leeway_seconds: int = 10
    cors: bool = True
    # The newest records win: events, files, access tokens and used assertions each keep this many.
    max_records: int = 10_000


def load(path: Path, *, audience: str) -> SandboxConfig:
    """Read a JSON file with the fields of `SandboxConfig`; `audience` stands in where it names none."""
    values = {"audience": audience} | json.loads(path.read_text(encoding="utf-8"))
    return TypeAdapter(SandboxConfig).validate_python(values)
