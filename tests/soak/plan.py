"""What is uploaded, by whom and in which manner. Drawn from a seed, so that a run can be had again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

KIB, MIB = 1024, 1024 * 1024
SIZES = (
    (1, 1, 5),
    (2, KIB, 25),
    (KIB, 64 * KIB, 30),
    (64 * KIB, MIB, 25),
    (MIB, 8 * MIB, 12),
    (8 * MIB, 32 * MIB, 3),
)
"""From, to, and how often in a hundred."""
BLOCK_BYTES = 64 * KIB
LONGEST_SECONDS = 6.0
"""How long a slow upload may last."""
BOUNDARY = b"soak-boundary"
FIRST_OUT_OF_RAIN = 10_000_000
"""Numbers from here on belong to uploads for which Coze has no faults."""

UPSTREAM_CODES = frozenset(
    {
        "no_free_slot",
        "outcome_unknown",
        "upstream_aborted",
        "upstream_bad_answer",
        "upstream_busy",
        "upstream_credential_refused",
        "upstream_credential_replaced",
        "upstream_down",
        "upstream_failed",
        "upstream_limit",
        "upstream_refused",
        "upstream_timeout",
        "upstream_unreachable",
    }
)
"""How anyone's upload may end when Coze has a fault."""


@dataclass(frozen=True)
class Manner:
    """A way to upload, and how often in a hundred it is chosen."""

    weight: int
    refusal: str | None = None
    """What it asks for."""
    leaves: bool = False
    """Whether it waits for no answer."""
    can_be_stored: bool = False
    """Whether it sends all of a file that nothing speaks against."""
    forms_only: bool = False
    max_bytes: int = 32 * MIB
    min_bytes: int = 1


MANNERS = {
    "sound": Manner(58, can_be_stored=True),
    "slow": Manner(10, can_be_stored=True, max_bytes=MIB),
    "stalls": Manner(2, "client_too_slow", min_bytes=100),
    "trickles": Manner(2, "client_too_slow", min_bytes=KIB),
    "leaves midway": Manner(4, leaves=True),
    "resets midway": Manner(4, leaves=True),
    "leaves unanswered": Manner(2, leaves=True, can_be_stored=True),
    "promises more": Manner(2, leaves=True),
    "promises less": Manner(2, "malformed_multipart", forms_only=True, max_bytes=MIB),
    "names badly": Manner(2, "bad_file_name"),
    "brings nothing": Manner(2, "empty_file"),
    "brings two": Manner(2, "several_files", forms_only=True),
    "brings a program": Manner(2, "file_type_refused"),
    "has no key": Manner(2, "invalid_credential"),
    "comes again": Manner(2, "token_used", max_bytes=1),
    "outgrows its token": Manner(1, "too_large", min_bytes=2),
    "announces another": Manner(1, "digest_mismatch"),
}
BY_TOKEN = frozenset({"comes again", "outgrows its token", "announces another"})


@dataclass(frozen=True)
class Upload:
    """One file and the way it comes."""

    number: int
    manner: str
    size: int
    is_form: bool
    is_chunked: bool
    by_token: bool
    by_drop_in: bool
    has_fields: bool
    bytes_per_second: int | None

    @property
    def path(self) -> str:
        return "/v1/files/upload" if self.by_drop_in else "/proxy/upload"

    @property
    def can_be_stored(self) -> bool:
        """A form is whole at its last boundary, whatever else was promised; a bare file is not."""
        return MANNERS[self.manner].can_be_stored or (self.manner == "promises more" and self.is_form)

    @property
    def name(self) -> str:
        """By this its records in the log are found."""
        return f"upload-{self.number}"

    @property
    def origin(self) -> str:
        """The page that it says it comes from."""
        return f"http://{self.name}.example"

    @property
    def file_name(self) -> str:
        """By this it is found at Coze."""
        extension = "exe" if self.manner == "brings a program" else "csv"
        return f"{self.name}{chr(7) if self.manner == 'names badly' else ''}.{extension}"

    @cached_property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for piece in self.content():
            digest.update(piece)
        return digest.hexdigest()

    def content(self) -> Iterator[bytes]:
        """The file's bytes: text, no block of it like another."""
        block = random.Random(self.number).randbytes(BLOCK_BYTES // 2).hex().encode()
        for start in range(0, self.size, BLOCK_BYTES):
            yield (b"%010d" % start + block[10:])[: self.size - start]


def uploads(seed: int) -> Iterator[Upload]:
    """Uploads without an end, the same for the same seed."""
    draw = random.Random(seed)
    names, weights = list(MANNERS), [manner.weight for manner in MANNERS.values()]
    number = 0
    while True:
        yield _upload(draw, number, draw.choices(names, weights)[0])
        number += 1


def sound_uploads(seed: int, first_number: int, count: int) -> list[Upload]:
    """So many that nothing speaks against; the first is one of the largest."""
    draw = random.Random(seed)
    some = [_upload(draw, first_number + place, "sound") for place in range(1, count)]
    return [_with_size(draw, first_number, "sound", 32 * MIB), *some]


def _upload(draw: random.Random, number: int, name: str) -> Upload:
    manner = MANNERS[name]
    low, high, _ = draw.choices(SIZES, [size[2] for size in SIZES])[0]
    size = min(max(draw.randint(low, high), manner.min_bytes), manner.max_bytes)
    return _with_size(draw, number, name, 0 if name == "brings nothing" else size)


def _with_size(draw: random.Random, number: int, name: str, size: int) -> Upload:
    is_form = MANNERS[name].forms_only or draw.random() < 0.6
    by_token = name in BY_TOKEN or draw.random() < 0.5
    return Upload(
        number=number,
        manner=name,
        size=size,
        is_form=is_form,
        is_chunked=name not in ("promises more", "promises less") and draw.random() < 0.4,
        by_token=by_token and name != "has no key",
        by_drop_in=is_form and not by_token and draw.random() < 0.5,
        has_fields=is_form and draw.random() < 0.3,
        bytes_per_second=_pace(draw, size) if name == "slow" else None,
    )


def _pace(draw: random.Random, size: int) -> int:
    """Slow, but not slower than may be, nor than we have time."""
    return max(int(size / draw.uniform(1, LONGEST_SECONDS)), 4 * KIB)
