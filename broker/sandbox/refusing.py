"""The innermost layer: whatever the endpoints raise becomes an answer in Coze's shape."""

import logging

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from broker.sandbox import refusals
from broker.sandbox.answers import api_refused, oauth_refused, send_and_close
from broker.sandbox.events import event_of
from broker.sandbox.refusals import ApiError, OAuthError

logger = logging.getLogger(__name__)


class Refusing:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            event_of(scope).settle("aborted")
        except ApiError as error:
            response = api_refused(scope, error.refusal)
            await (
                send_and_close(response, receive, send)
                if error.body_unread
                else response(scope, receive, send)
            )
        except OAuthError as error:
            await oauth_refused(scope, error.refusal)(scope, receive, send)
        except Exception:
            logger.exception("the sandbox failed to answer")
            await api_refused(scope, refusals.INTERNAL)(scope, receive, send)


async def unknown_path(request: Request, _: Exception) -> Response:
    return api_refused(request.scope, refusals.UNKNOWN_PATH)


async def wrong_method(request: Request, _: Exception) -> Response:
    return api_refused(request.scope, refusals.WRONG_METHOD)
