"""The form of an API key: what it begins with, how one is made, how one is told from junk.

A key reads ``cub_sk_<40 random characters><6 of checksum>`` (secret, for servers) or ``cub_pk_…``
(publishable, for pages). The prefix lets scanners find a leaked key; the checksum refuses a mistyped
one without a look-up.
"""

from __future__ import annotations

import hmac
import secrets
import string
import zlib
from typing import Literal

from broker.settings import PUBLISHABLE_PREFIX, SECRET_PREFIX

KeyKind = Literal["secret", "publishable"]
PREFIXES: dict[KeyKind, str] = {"secret": SECRET_PREFIX, "publishable": PUBLISHABLE_PREFIX}
ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
RANDOM_LENGTH = 40
CHECKSUM_LENGTH = 6


def generate(kind: KeyKind) -> str:
    """A fresh key of 238 random bits, with its prefix and checksum."""
    body = PREFIXES[kind] + "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_LENGTH))
    return body + _checksum(body)


def is_well_formed(secret: str) -> bool:
    """Whether the text could be a key at all; costs no look-up."""
    body, check = secret[:-CHECKSUM_LENGTH], secret[-CHECKSUM_LENGTH:]
    return secret.isascii() and looks_like_key(secret) and hmac.compare_digest(_checksum(body), check)


def looks_like_key(text: str) -> bool:
    """Whether the text has a key's prefix."""
    return text.startswith(tuple(PREFIXES.values()))


def hint(secret: str) -> str:
    """Enough of a key for its owner to know it again, too little to use it."""
    return f"{secret[:11]}…{secret[-4:]}"


def _checksum(body: str) -> str:
    number, digits = zlib.crc32(body.encode()), ""
    for _ in range(CHECKSUM_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits
