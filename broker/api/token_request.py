"""What a caller says of the upload that it needs a token for."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from broker.transfer.policy import RouteWish

# RFC 6838 §4.2: a type and a subtype, each of restricted characters; parameters may follow.
MEDIA_TYPE = r"^[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(\s*;.{0,200})?$"

MAX_NUMBER = 2**53 - 1
"""The largest whole number that JSON has everywhere (RFC 8259 §6)."""


class TokenRequest(BaseModel):
    """The body of ``POST /token``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    size: int = Field(ge=0, le=MAX_NUMBER)
    file_name: str | None = Field(default=None, min_length=1, max_length=10_000)
    content_type: Annotated[str, StringConstraints(pattern=MEDIA_TYPE)] | None = None
    sensitive: bool = False
    subject: str | None = Field(default=None, min_length=1, max_length=200)
    route: RouteWish = "auto"
    ttl_seconds: int | None = Field(default=None, ge=1)
    uses: int = Field(default=1, ge=1, le=MAX_NUMBER)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
