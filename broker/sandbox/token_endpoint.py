"""`POST /api/permission/oauth2/token`: an assertion in, an access token out."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from broker.sandbox import refusals
from broker.sandbox.access_tokens import AccessTokens, bearer
from broker.sandbox.answers import read_body
from broker.sandbox.assertions import Assertions
from broker.sandbox.events import event_of
from broker.sandbox.refusals import OAuthError

JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
MAX_BODY_BYTES = 64 * 1024


class TokenRequest(BaseModel):
    """Further fields are tolerated: coze-go repeats its client_id in the body."""

    model_config = ConfigDict(strict=True)

    grant_type: str
    duration_seconds: Annotated[int, Field(ge=1, le=86399)] = 900
    scope: object = None


class TokenEndpoint:
    def __init__(self, assertions: Assertions, tokens: AccessTokens) -> None:
        self._assertions = assertions
        self._tokens = tokens

    async def exchange(self, request: Request) -> Response:
        asked = await _token_request(request)
        assertion = bearer(request)
        if assertion is None:
            raise OAuthError(refusals.NO_ASSERTION)
        app = self._assertions.accept(assertion)
        token, expires_at = self._tokens.issue(app, asked.duration_seconds)
        event = event_of(request.scope)
        event.fill(client_id=app.client_id, duration_seconds=asked.duration_seconds)
        event.settle("issued")
        # Coze puts the moment of expiry into `expires_in`, not the time that is left.
        return JSONResponse({"access_token": token, "expires_in": expires_at, "token_type": "Bearer"})


async def _token_request(request: Request) -> TokenRequest:
    asked = _parsed(
        request.headers.get("content-type", ""), await read_body(request, max_bytes=MAX_BODY_BYTES)
    )
    if asked.grant_type != JWT_BEARER:
        raise OAuthError(refusals.WRONG_GRANT)
    # Coze documents `scope` for channel apps alone. On another app it may be ignored, so nobody
    # should come to rely on it here: only the null that cozepy sends is let through.
    if asked.scope is not None:
        raise OAuthError(refusals.SCOPE_UNSUPPORTED)
    return asked


def _parsed(content_type: str, body: bytes | None) -> TokenRequest:
    if body is None or content_type.partition(";")[0].strip().lower() != "application/json":
        raise OAuthError(refusals.BAD_BODY)
    try:
        return TokenRequest.model_validate_json(body)
    except ValidationError as error:
        raise OAuthError(refusals.BAD_BODY) from error
