"""Ed25519 keys as text: PEM blocks, one after another, with comments between them.

Private keys sign and verify; a public key (``PUBLIC KEY``) only verifies.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

NOT_KEYS = "not Ed25519 keys in PEM form, one after another, without a passphrase"
NO_PRIVATE_KEY = "there is no private key to sign with"
KNOWN_KEY = "one of the keys stands in a standard, so everybody has it"
REGULAR_KEY = "one of the private keys is too regular to be random"

_BLOCK = re.compile(r"-----BEGIN (PRIVATE|PUBLIC) KEY-----[A-Za-z0-9+/=\s]*-----END \1 KEY-----")
_COMMENT = re.compile(r"^\s*#.*$", re.MULTILINE)
_SIGNS_SINCE = re.compile(r"^# signs since (\S+)$", re.MULTILINE)
_MIN_DISTINCT = 12
"""Of 32 random bytes, 30 are distinct on average, and of their 31 steps 29."""

# RFC 8032 §7.1 and §7.2 (the first is RFC 8037's, too), RFC 8410 §10.3, RFC 9421 B.1.4: public keys.
_KNOWN = frozenset(
    bytes.fromhex(text)
    for text in (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "278117fc144c72340f67d0f2316e8386ceffbf2b2428c9c51fef7c597f1d426e",
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "dfc9425e4f968f7f0c29f0259cf5f9aed6851c2bb4ad8bfb860cfee0ab248292",
        "0f1d1274943b91415889152e893d80e93275a1fc0b65fd71b4b0dda10ad7d772",
        "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1",
        "26b40b8f93fff3d897112f7ebc582b232dbd72517d082fe83cfb30ddce43d1bb",
    )
)


@dataclass(frozen=True)
class Ed25519Key:
    """One key of a ring. ``signs_since`` is when it began to sign, in Unix seconds, if that was noted."""

    public: Ed25519PublicKey
    private: Ed25519PrivateKey | None = None
    signs_since: int | None = None

    @property
    def public_bytes(self) -> bytes:
        """The 32 bytes that RFC 8032 calls the public key."""
        return self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)

    def __repr__(self) -> str:
        return f"Ed25519Key({self.public_bytes.hex()})"


def parse(text: str) -> list[Ed25519Key]:
    """The keys in a text, in order, each once; at least one of them can sign.

    Raises ``ValueError`` with a sentence that repeats nothing of the text: for what is no such key or can't
    be read whole, for keys that others know, and where none can sign.
    """
    keys = {key.public_bytes: key for key in reversed([*_parsed(text)])}
    found = list(reversed(keys.values()))
    if not found:
        raise ValueError(NOT_KEYS)
    if all(key.private is None for key in found):
        raise ValueError(NO_PRIVATE_KEY)
    return found


def render(keys: list[Ed25519Key]) -> str:
    """The text that ``parse`` makes these keys of."""
    return "".join(_rendered(key) for key in keys)


def _parsed(text: str) -> Iterator[Ed25519Key]:
    end = 0
    for block in _BLOCK.finditer(text):
        yield _key(block.group(), _comments(text[end : block.start()]))
        end = block.end()
    _comments(text[end:])


def _comments(between: str) -> str:
    """What stands between blocks. Half a block does, when a file is not yet written to its end."""
    if _COMMENT.sub("", between).strip():
        raise ValueError(NOT_KEYS)
    return between


def _key(block: str, comments: str) -> Ed25519Key:
    private, public = _loaded(block.encode())
    since = [_unix_seconds(text) for text in _SIGNS_SINCE.findall(comments)]
    key = Ed25519Key(public, private, since[-1] if since else None)
    if key.public_bytes in _KNOWN:
        raise ValueError(KNOWN_KEY)
    if private is not None and _is_regular(
        private.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    ):
        raise ValueError(REGULAR_KEY)
    return key


def _loaded(block: bytes) -> tuple[Ed25519PrivateKey | None, Ed25519PublicKey]:
    try:
        if b"BEGIN PUBLIC" in block:
            private, public = None, load_pem_public_key(block)
        else:
            private = load_pem_private_key(block, password=None)
            public = private.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ValueError(NOT_KEYS) from error
    if not isinstance(public, Ed25519PublicKey) or not isinstance(private, Ed25519PrivateKey | None):
        raise ValueError(NOT_KEYS)  # noqa: TRY004 - a bad value in a text
    return private, public


def _is_regular(secret: bytes) -> bool:
    """Whether it was typed or counted rather than drawn: a byte repeated, a row of numbers, a text."""
    steps = {(after - before) % 256 for before, after in pairwise(secret)}
    is_text = all(" " <= chr(byte) <= "~" for byte in secret)
    return len(set(secret)) < _MIN_DISTINCT or len(steps) < _MIN_DISTINCT or is_text


def _rendered(key: Ed25519Key) -> str:
    if key.private is not None:
        block = key.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    else:
        block = key.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    since = "" if key.signs_since is None else f"# signs since {_iso(key.signs_since)}\n"
    return since + block.decode()


def _iso(moment: int) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _unix_seconds(text: str) -> int:
    try:
        return int(datetime.datetime.fromisoformat(text).timestamp())
    except ValueError:
        raise ValueError(NOT_KEYS) from None
