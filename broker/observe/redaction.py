"""What looks like a credential is taken out of whatever is kept: one pattern for log and audit."""

from __future__ import annotations

import re

CREDENTIAL = re.compile(
    r"(?<![A-Za-z0-9])(pat_|sat_|czs_|czu_|cztei_|cub_sk_|cub_pk_|cub_ss_|eyJ)[\w.~+/=-]{8,}"
)
"""Coze's tokens, our keys, and JWTs, by what they begin with."""


def redacted(text: str) -> str:
    """The text, of each credential in it only what it begins with."""
    return CREDENTIAL.sub(r"\1(redacted)", text)
