"""`/_sandbox/…`: what tests use to order faults and to see what arrived."""

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.sandbox import faults, refusals
from broker.sandbox.answers import logid_detail, read_body
from broker.sandbox.events import EventLog
from broker.sandbox.faults import Faults
from broker.sandbox.refusals import ApiError
from broker.sandbox.stored_files import StoredFiles

MAX_BODY_BYTES = 64 * 1024


class Control:
    def __init__(self, ordered: Faults, files: StoredFiles, events: EventLog) -> None:
        self._faults = ordered
        self._files = files
        self._events = events

    async def list_faults(self, _: Request) -> Response:
        return JSONResponse({"faults": self._faults.listing()})

    async def order_faults(self, request: Request) -> Response:
        body = await read_body(request, max_bytes=MAX_BODY_BYTES)
        if body is None:
            raise ApiError(refusals.BAD_PARAMETER, body_unread=True)
        try:
            self._faults.order(faults.parse(body))
        except ValidationError as error:
            return _explained(error, request)
        return await self.list_faults(request)

    async def drop_faults(self, _: Request) -> Response:
        self._faults.order([])
        return Response(status_code=204)

    async def list_files(self, _: Request) -> Response:
        return JSONResponse({"files": self._files.listing()})

    async def list_events(self, _: Request) -> Response:
        return JSONResponse({"events": self._events.listing()})

    async def drop_events(self, _: Request) -> Response:
        self._events.clear()
        return Response(status_code=204)


def _explained(error: ValidationError, request: Request) -> Response:
    reasons = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    body = {"code": refusals.BAD_PARAMETER.code, "msg": reasons, "detail": logid_detail(request.scope)}
    return JSONResponse(body, refusals.BAD_PARAMETER.status)
