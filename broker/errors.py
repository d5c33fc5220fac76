"""Every way the broker says no, in one tree.

Refusal                                         status  retry  Coze's code
├── MalformedRequest                               400           4000
│   ├── MalformedMultipart                         400           4304
│   ├── MissingFile                                400           4300
│   ├── SeveralFiles                               400           4301
│   ├── EmptyFile                                  400           4300
│   └── BadFileName                                400           4000
├── Unauthenticated                                401           4100
│   ├── MissingCredential                          401           4100
│   ├── InvalidCredential                          401           4100
│   ├── ExpiredCredential                          401           4100
│   ├── RevokedCredential                          401           4100
│   ├── TokenUsed                                  401           4100
│   ├── InvalidSignature                           401           4100
│   ├── SignatureReplayed                          401           4100
│   └── FinishDeadline                             401           4100
├── Forbidden                                      403           4101
│   ├── WrongScope                                 403           4101
│   ├── OriginNotAllowed                           403           4101
│   ├── AddressNotAllowed                          403           4101
│   └── SubjectNotAllowed                          403           4101
├── NotFound                                       404           4200
├── MethodNotAllowed                               405           4000
├── ClientTooSlow                                  408    yes    4000
├── IdempotencyConflict                            409           4000
│   ├── IdempotencyKeyReused                       409           4000
│   └── IdempotencyInProgress                      409    yes    4000
├── KeyRevoked                                     409           4000
├── TooLarge                                       413           4302
├── UnsupportedMediaType                           415           4300
│   ├── TypeNotGranted                             415           4303
│   ├── FileTypeRefused                            415           4303
│   └── FileContentMismatch                        415           4304
├── InvalidRequest                                 422           4000
│   ├── TtlTooLong                                 422           4000
│   ├── DigestMismatch                             422           4304
│   ├── FileMismatch                               422           4304
│   ├── ContentRefused                             422           4304
│   └── NotScannable                               422           4302
├── TooMany                                        429    yes    4013
│   ├── RateLimited                                429    yes    4013
│   ├── TooManyUploads                             429    yes    4013
│   ├── TooManyFailures                            429    yes    4013
│   └── UpstreamLimit                              429    yes    4013
├── HeadTooLarge                                   431           4000
├── ClientLeft                                     499           4000
├── InternalError                                  500           5000
├── UnsupportedEncoding                            501           4000
├── UpstreamFault                                  502           5000
│   ├── UpstreamUnreachable                        502    yes    5000
│   ├── UpstreamAborted                            502    yes    5000
│   ├── UpstreamBadAnswer                          502           5000
│   ├── UpstreamFailed                             502    yes    5000
│   ├── UpstreamRefused                            502           5000
│   ├── UpstreamCredentialRefused                  502           5000
│   └── UpstreamCredentialReplaced                 502    yes    5000
├── Unavailable                                    503    yes    5000
│   ├── StoreUnavailable                           503    yes    5000
│   ├── AuditUnavailable                           503    yes    5000
│   ├── IdentityProviderUnavailable                503    yes    5000
│   ├── ScannerUnavailable                         503    yes    5000
│   ├── NoFreeSlot                                 503    yes    4013
│   ├── UpstreamBusy                               503    yes    4013
│   ├── UpstreamDown                               503    yes    5000
│   └── ShuttingDown                               503    yes    5000
├── UpstreamTimeout                                504    yes    5000
└── OutcomeUnknown                                 504           5000

A refusal has two voices: ``detail`` is a sentence for the caller, ``log`` is for the operator and
never leaves the process. A class holds what is the same each time, an instance what is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple


class Reply(NamedTuple):
    """What Coze answered: HTTP's status, and its own code where the answer had one that can be read."""

    status: int
    code: int | None = None


class Refusal(Exception):
    """A request that is not served, and why.

    ``detail`` replaces the class's own sentence; ``log`` is for the operator alone;
    ``retry_after_seconds`` is sent as ``Retry-After``; ``logid`` is Coze's id for its own answer, and
    ``reply`` what that was, where the refusal stands for one.
    """

    code: ClassVar[str] = "refused"
    status: ClassVar[int] = 400
    title: ClassVar[str] = "The request was refused"
    sentence: ClassVar[str] = "The request was refused."
    retryable: ClassVar[bool] = False
    coze_code: ClassVar[int] = 4000

    def __init__(
        self,
        detail: str | None = None,
        *,
        log: str | None = None,
        retry_after_seconds: int | None = None,
        logid: str | None = None,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(detail or self.sentence)
        self.detail = detail or self.sentence
        self.log = log
        self.retry_after_seconds = retry_after_seconds
        self.logid = logid
        self.reply = reply

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to this refusal whatever shape its body takes."""
        return {} if self.retry_after_seconds is None else {"Retry-After": str(self.retry_after_seconds)}


# --- 400: the request can't be read -------------------------------------------------------------


class MalformedRequest(Refusal):
    code = "malformed_request"
    title = "The request can't be read"
    sentence = "The request can't be read."


class MalformedMultipart(MalformedRequest):
    code = "malformed_multipart"
    title = "The form can't be read"
    sentence = "The multipart/form-data body is malformed or ends too early. Send it again, whole."
    coze_code = 4304


class MissingFile(MalformedRequest):
    code = "missing_file"
    title = "No file in the form"
    sentence = "The form has no file. Send one part named 'file', with a file name."
    coze_code = 4300


class SeveralFiles(MalformedRequest):
    code = "several_files"
    title = "More than one file"
    sentence = "The form has more than one file. Send one file for each request."
    coze_code = 4301


class EmptyFile(MalformedRequest):
    code = "empty_file"
    title = "The file is empty"
    sentence = "The file has no bytes, and Coze takes no empty file."
    coze_code = 4300


class BadFileName(MalformedRequest):
    code = "bad_file_name"
    title = "The file name can't be used"
    sentence = "The file name can't be used. Rename the file and send it again."


# --- 401: who is calling? -----------------------------------------------------------------------


class Unauthenticated(Refusal):
    code = "unauthenticated"
    status = 401
    title = "Not authenticated"
    sentence = "The request carries no credential that is valid here."
    coze_code = 4100

    @property
    def headers(self) -> dict[str, str]:
        """RFC 6750 §3: a 401 names the scheme, and the error once a credential was sent."""
        return {**super().headers, "WWW-Authenticate": 'Bearer realm="broker", error="invalid_token"'}


class MissingCredential(Unauthenticated):
    code = "missing_credential"
    title = "No credential"
    sentence = "Send one Authorization header: 'Authorization: Bearer <token or API key>'."

    @property
    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": 'Bearer realm="broker"'}


class InvalidCredential(Unauthenticated):
    code = "invalid_credential"
    title = "The credential is not valid"
    sentence = "The credential is not valid here. Check that the whole token or key was sent."


class ExpiredCredential(Unauthenticated):
    code = "expired_credential"
    title = "The credential has expired"
    sentence = "The credential has expired. Get a fresh one just before it is used."


class RevokedCredential(Unauthenticated):
    code = "revoked_credential"
    title = "The credential was revoked"
    sentence = "The credential was revoked, or the key that it was minted with. Get a fresh one."


class TokenUsed(Unauthenticated):
    code = "token_used"
    title = "The token was used before"
    sentence = "This token was used for as many uploads as it was good for. Get a fresh one."


class InvalidSignature(Unauthenticated):
    code = "invalid_signature"
    title = "The request's signature is not valid"
    sentence = (
        "The request's signature is not valid. Sign method, path, query and Content-Digest, with created, "
        "nonce and keyid, within 30 seconds of sending."
    )


class SignatureReplayed(Unauthenticated):
    code = "signature_replayed"
    title = "The request was signed for one use"
    sentence = "A request with this nonce came before. Sign every request anew."


class FinishDeadline(Unauthenticated):
    code = "finish_deadline"
    title = "The upload took too long"
    sentence = "The upload was not finished by the token's deadline and was stopped. Nothing was stored."


# --- 403: known, but not allowed ----------------------------------------------------------------


class Forbidden(Refusal):
    code = "forbidden"
    status = 403
    title = "Not allowed"
    sentence = "The credential does not allow this."
    coze_code = 4101


class WrongScope(Forbidden):
    code = "wrong_scope"
    title = "The credential lacks a scope"
    sentence = "The credential lacks the scope that this call needs."


class OriginNotAllowed(Forbidden):
    code = "origin_not_allowed"
    title = "The origin is not allowed"
    sentence = "The credential can't be used from this origin."


class AddressNotAllowed(Forbidden):
    code = "address_not_allowed"
    title = "The address is not allowed"
    sentence = "The key can't be used from this network address."


class SubjectNotAllowed(Forbidden):
    code = "subject_not_allowed"
    title = "The caller can't vouch for this subject"
    sentence = (
        "A publishable key can't vouch for a subject, nor an ID token for any but its own. Leave it out, or "
        "mint on a server with a secret key."
    )


# --- 404, 405, 408, 409, 413, 415, 422 ----------------------------------------------------------


class NotFound(Refusal):
    code = "not_found"
    status = 404
    title = "Not found"
    sentence = "There is nothing at this address."
    coze_code = 4200


class MethodNotAllowed(Refusal):
    code = "method_not_allowed"
    status = 405
    title = "Method not allowed"
    sentence = "This address does not answer that method."


class ClientTooSlow(Refusal):
    code = "client_too_slow"
    status = 408
    title = "The upload stalled"
    sentence = "No data came for too long, so the upload was stopped. Nothing was stored; send it again."
    retryable = True


class IdempotencyConflict(Refusal):
    code = "idempotency_conflict"
    status = 409
    title = "The idempotency key can't be used"
    sentence = "The Idempotency-Key can't be used for this request."


class IdempotencyKeyReused(IdempotencyConflict):
    code = "idempotency_key_reused"
    title = "The idempotency key belongs to another request"
    sentence = "This Idempotency-Key was used for another file. Use a fresh one for each upload."


class IdempotencyInProgress(IdempotencyConflict):
    code = "idempotency_in_progress"
    title = "The same request is still running"
    sentence = "The upload with this Idempotency-Key is still running. Send it again shortly."
    retryable = True


class KeyRevoked(Refusal):
    code = "key_revoked"
    status = 409
    title = "The key is revoked"
    sentence = "The key is revoked, and stays so. Make another one."


class TooLarge(Refusal):
    code = "too_large"
    status = 413
    title = "The file is too large"
    sentence = "The file is larger than this upload may be."
    coze_code = 4302


class UnsupportedMediaType(Refusal):
    code = "unsupported_media_type"
    status = 415
    title = "The content type is not supported"
    sentence = "This content type is not taken here."
    coze_code = 4300


class TypeNotGranted(UnsupportedMediaType):
    code = "type_not_granted"
    title = "Another content type than granted"
    sentence = "The file's content type is not the one that the token was issued for."
    coze_code = 4303


class FileTypeRefused(UnsupportedMediaType):
    code = "file_type_refused"
    title = "Coze does not take this type of file"
    sentence = "Coze does not take files of this type. Send one of the types in its documentation."
    coze_code = 4303


class FileContentMismatch(UnsupportedMediaType):
    code = "file_content_mismatch"
    title = "The content does not fit the file name"
    sentence = (
        "Coze takes a file only if content and extension fit. Name it for what it is, and send it again."
    )
    coze_code = 4304


class InvalidRequest(Refusal):
    code = "invalid_request"
    status = 422
    title = "A value is not valid"
    sentence = "A value in the request is not valid."


class TtlTooLong(InvalidRequest):
    code = "ttl_too_long"
    title = "The lifetime is beyond the policy"
    sentence = "The lifetime asked for is longer than the policy allows."


class DigestMismatch(InvalidRequest):
    code = "digest_mismatch"
    title = "The content is not what was announced"
    sentence = "The bytes received do not have the SHA-256 that was announced. Nothing was stored."
    coze_code = 4304


class FileMismatch(InvalidRequest):
    code = "file_mismatch"
    title = "Coze's file is not the announced one"
    sentence = "What Coze has under this file_id is not the file that the token was minted for."
    coze_code = 4304


class ContentRefused(InvalidRequest):
    """What the scanner found is for the log alone: it would tell an attacker what to change."""

    code = "content_refused"
    title = "The scanner refused the content"
    sentence = "The scanner refused the file's content. Nothing was stored."
    coze_code = 4304


class NotScannable(InvalidRequest):
    """Neither clean nor proven bad, so it does not pass."""

    code = "not_scannable"
    title = "The file can't be scanned"
    sentence = (
        "The file must be scanned, and is more than the scanner takes, in size or in what is packed inside. "
        "Nothing was stored. The operator can raise the scanner's limits."
    )
    coze_code = 4302


class TooMany(Refusal):
    code = "too_many"
    status = 429
    title = "Too many requests"
    sentence = "Too many requests. Wait as long as Retry-After says."
    retryable = True
    coze_code = 4013


class RateLimited(TooMany):
    code = "rate_limited"
    title = "The rate limit is reached"
    sentence = "The rate limit is reached. Wait as long as Retry-After says."


class TooManyUploads(TooMany):
    code = "too_many_uploads"
    title = "As many uploads are running as may"
    sentence = "As many uploads are running as this caller may have. Send this one when another is done."


class TooManyFailures(TooMany):
    code = "too_many_failures"
    title = "Too many credentials that are not valid"
    sentence = "Too many credentials that are not valid came from this address. Wait as Retry-After says."


class UpstreamLimit(TooMany):
    code = "upstream_limit"
    title = "Coze takes no more uploads for now"
    sentence = "The account has as many uploads a second as Coze takes. Send it again as Retry-After says."


class HeadTooLarge(Refusal):
    code = "head_too_large"
    status = 431
    title = "The request's head is too large"
    sentence = "The request's address and headers are larger than 64 KiB."


class ClientLeft(Refusal):
    """Nobody is there to read it; the log, the audit and the metrics are."""

    code = "client_left"
    status = 499
    title = "The client left"
    sentence = "The client closed the connection before the upload was finished."


# --- 5xx ----------------------------------------------------------------------------------------


class InternalError(Refusal):
    code = "internal_error"
    status = 500
    title = "Internal error"
    sentence = "Something went wrong on our side. Tell the operator the request id."
    coze_code = 5000


class UnsupportedEncoding(Refusal):
    code = "unsupported_encoding"
    status = 501
    title = "The transfer encoding is not supported"
    sentence = "The only Transfer-Encoding that is taken here is chunked."


class UpstreamFault(Refusal):
    code = "upstream_fault"
    status = 502
    title = "Coze could not be used"
    sentence = "Coze could not be used."
    coze_code = 5000


class UpstreamUnreachable(UpstreamFault):
    code = "upstream_unreachable"
    title = "Coze can't be reached"
    sentence = "The broker can't reach Coze. Nothing was stored; try again later."
    retryable = True


class UpstreamAborted(UpstreamFault):
    code = "upstream_aborted"
    title = "Coze closed the connection"
    sentence = "Coze closed the connection before the whole file was sent. Nothing was stored; send it again."
    retryable = True


class UpstreamBadAnswer(UpstreamFault):
    code = "upstream_bad_answer"
    title = "Coze's answer can't be used"
    sentence = "Coze gave an answer that can't be used, so the upload can't be called stored."


class UpstreamFailed(UpstreamFault):
    code = "upstream_failed"
    title = "Coze had an error of its own"
    sentence = "Coze had an error of its own and stored nothing. Try again later."
    retryable = True


class UpstreamRefused(UpstreamFault):
    code = "upstream_refused"
    title = "Coze refused the request"
    sentence = "Coze refused the request."


class UpstreamCredentialRefused(UpstreamFault):
    code = "upstream_credential_refused"
    title = "Coze refused the broker's credential"
    sentence = "Coze refused the broker's own credential. Tell the operator the request id."
    is_replaced: bool = False
    """Whether the broker has, or will get, another one that Coze may take."""


class UpstreamCredentialReplaced(UpstreamFault):
    """For who can't be served with the other one, since its file went by, or nothing may be repeated."""

    code = "upstream_credential_replaced"
    title = "Coze refused an access token that was replaced"
    sentence = (
        "Coze refused the broker's access token, and it was replaced. Nothing was stored; send it again."
    )
    retryable = True


class Unavailable(Refusal):
    code = "unavailable"
    status = 503
    title = "Not available now"
    sentence = "The broker can't serve this now. Try again shortly."
    retryable = True
    coze_code = 5000


class StoreUnavailable(Unavailable):
    """One-time use and keys fail closed: without the store nobody is let in."""

    code = "store_unavailable"
    title = "The store can't be used"
    sentence = "The broker's store can't be used right now, so nobody is let in. Try again shortly."


class AuditUnavailable(Unavailable):
    code = "audit_unavailable"
    title = "The audit can't be written"
    sentence = "The broker can't write its audit, and does nothing of this kind unseen. Try again shortly."


class IdentityProviderUnavailable(Unavailable):
    code = "identity_provider_unavailable"
    title = "The identity provider can't be asked"
    sentence = "The broker can't get the identity provider's keys. Try again shortly."


class ScannerUnavailable(Unavailable):
    """A file that must be scanned never passes unseen."""

    code = "scanner_unavailable"
    title = "The scanner can't be used"
    sentence = (
        "The file must be scanned, and the scanner can't be used right now. Nothing was stored; "
        "try again shortly."
    )


class NoFreeSlot(Unavailable):
    code = "no_free_slot"
    title = "As many uploads are running as may"
    sentence = "The broker has as many uploads running as it may. Try again shortly."
    coze_code = 4013


class UpstreamBusy(Unavailable):
    code = "upstream_busy"
    title = "Coze is busy"
    sentence = "Coze takes no more requests right now. Try again shortly."
    coze_code = 4013


class UpstreamDown(Unavailable):
    """Known beforehand: nobody waits for what just failed for all others."""

    code = "upstream_down"
    title = "Coze is down"
    sentence = (
        "Coze failed several times in a row, so it is left alone for a moment. Nothing was stored; send it "
        "again as Retry-After says."
    )


class ShuttingDown(Unavailable):
    code = "shutting_down"
    title = "The broker is shutting down"
    sentence = "The broker is shutting down and had to stop this upload. Send it again."


class UpstreamTimeout(Refusal):
    code = "upstream_timeout"
    status = 504
    title = "Coze did not answer in time"
    sentence = "Coze did not answer in time. Nothing was stored; try again later."
    retryable = True
    coze_code = 5000


class OutcomeUnknown(Refusal):
    """The whole file was sent and no answer came: a repeat may store it twice, so it isn't retryable."""

    code = "outcome_unknown"
    status = 504
    title = "It is not known whether Coze stored the file"
    sentence = "The whole file was sent, but Coze's answer never came. It may or may not be stored."
    coze_code = 5000


def tree(root: type[Refusal] = Refusal) -> Iterator[type[Refusal]]:
    """Every refusal there is, ``root`` first."""
    yield root
    for child in root.__subclasses__():
        yield from tree(child)
