"""Sensitive uploads: which they are, and their scan."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

from starlette.requests import Request

from broker.api.services import Services, services
from broker.auth.upload_tokens import UploadToken
from broker.errors import InvalidRequest
from broker.observe import events
from broker.transfer.incoming import IncomingFile
from broker.transfer.multipart import MAX_OTHER_BYTES
from broker.transfer.scanned import Scan

HEADER = "X-Upload-Sensitive"


def is_sensitive(request: Request, file: IncomingFile, token: UploadToken | None) -> bool:
    """Whether the token, the policy or the caller says so. None of them can take it back.

    Raises :class:`InvalidRequest` for a word that is neither yes nor no.
    """
    marked = _says_so(request.headers.get(HEADER, "false")) or (token is not None and token.sensitive)
    policy = services(request).policy.sensitivity
    sensitive = marked or policy.marks(file.file_name, file.content_type)
    event = events.current()
    event.sensitive = sensitive or bool(event.sensitive)
    return sensitive


def scan_of(
    broker: Services, file: IncomingFile, *, sensitive: bool
) -> AbstractAsyncContextManager[Scan | None]:
    """The scan that the file must pass, to be opened; ``None`` inside if it need not pass any.

    Raises :class:`~broker.errors.NotScannable` for a file that is known to be too large.
    """
    if not sensitive or broker.scanner is None:
        return nullcontext()
    # Of a form it is not known how much of it is the file, but what may stand beside it has a bound.
    least_bytes = file.least_bytes or (file.room_bytes or 0) - MAX_OTHER_BYTES
    broker.policy.check_scannable(least_bytes)
    return broker.scanner.scan()


def _says_so(word: str) -> bool:
    if word not in ("true", "false"):
        raise InvalidRequest(f"{HEADER} is neither 'true' nor 'false'.")
    return word == "true"
