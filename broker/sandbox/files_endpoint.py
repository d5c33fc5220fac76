"""`POST /v1/files/upload` and `GET /v1/files/retrieve`."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.sandbox import file_types, refusals
from broker.sandbox.access_tokens import AccessTokens, Grant
from broker.sandbox.answers import logid_detail
from broker.sandbox.config import RETRIEVE_FILE, UPLOAD_FILE
from broker.sandbox.events import Event, event_of
from broker.sandbox.form import BrokenFormError, FilePart, FileTooLargeError, Form
from broker.sandbox.refusals import ApiError
from broker.sandbox.stored_files import StoredFile, StoredFiles, new_file_id

FIELD = "file"


class FilesEndpoint:
    def __init__(
        self, files: StoredFiles, tokens: AccessTokens, *, max_file_bytes: int, now: Callable[[], float]
    ) -> None:
        self._files = files
        self._tokens = tokens
        self._max_file_bytes = max_file_bytes
        self._now = now

    async def upload(self, request: Request) -> Response:
        grant = self._tokens.require(request, UPLOAD_FILE)
        event = event_of(request.scope)
        event.fill(token_kind=grant.kind, client_id=grant.client_id)
        part = _accepted(await self._read_form(request, event))
        stored = self._stored(part, grant)
        self._files.add(stored)
        event.fill(file_id=stored.id, sha256=stored.sha256)
        event.settle("stored")
        return JSONResponse({"code": 0, "msg": "", "data": stored.data()})

    async def retrieve(self, request: Request) -> Response:
        self._tokens.require(request, RETRIEVE_FILE)
        stored = self._files.find(request.query_params.get("file_id", ""))
        if stored is None:
            raise ApiError(refusals.FILE_NOT_FOUND)
        event_of(request.scope).settle("found")
        return JSONResponse(
            {"code": 0, "msg": "", "data": stored.data(), "detail": logid_detail(request.scope)}
        )

    async def _read_form(self, request: Request, event: Event) -> Form:
        form = self._new_form(request)
        try:
            async for chunk in request.stream():
                form.feed(chunk)
        except FileTooLargeError as error:
            raise ApiError(refusals.FILE_TOO_LARGE, body_unread=True) from error
        except BrokenFormError as error:
            raise ApiError(refusals.BAD_FILE, body_unread=True) from error
        finally:
            _note(form, event)
        return form

    def _new_form(self, request: Request) -> Form:
        content_type = request.headers.get("content-type", "")
        if not content_type.lower().startswith("multipart/form-data"):
            raise ApiError(refusals.EMPTY_FILE)
        try:
            return Form(content_type, max_file_bytes=self._max_file_bytes)
        except BrokenFormError as error:
            raise ApiError(refusals.BAD_FILE) from error

    def _stored(self, part: FilePart, grant: Grant) -> StoredFile:
        return StoredFile(
            id=new_file_id(),
            file_name=part.file_name,
            bytes=part.size,
            sha256=part.digest.hexdigest(),
            content_type=part.content_type,
            created_at=int(self._now()),
            token_kind=grant.kind,
            client_id=grant.client_id,
        )


def _accepted(form: Form) -> FilePart:
    """The one file of a sound form; the order of the checks decides which code a client sees."""
    if not form.is_complete:
        raise ApiError(refusals.BAD_FILE)
    if len(form.files) > 1:
        raise ApiError(refusals.SEVERAL_FILES)
    if not form.files or form.files[0].field_name != FIELD or form.files[0].size == 0:
        raise ApiError(refusals.EMPTY_FILE)
    part = form.files[0]
    if not file_types.is_supported(part.file_name):
        raise ApiError(refusals.TYPE_UNSUPPORTED)
    if not file_types.content_matches(part.file_name, bytes(part.head)):
        raise ApiError(refusals.CONTENT_MISMATCH)
    return part


def _note(form: Form, event: Event) -> None:
    event.part_names = form.part_names
    if form.files:
        event.fill(file_name=form.files[0].file_name, file_bytes=form.files[0].size)
