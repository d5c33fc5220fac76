"""Coze's log id, which its support asks for: the UTC time and twenty hexadecimal digits."""

import secrets
from datetime import UTC, datetime

HEADER = "x-tt-logid"


def new_logid(now: float) -> str:
    moment = datetime.fromtimestamp(now, UTC)
    return f"{moment:%Y%m%d%H%M%S}{secrets.token_hex(10).upper()}"
