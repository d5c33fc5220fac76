"""The signed assertion that an OAuth app sends for an access token: verified, and good for one use."""

from collections.abc import Callable

import jwt
from pydantic import BaseModel, ConfigDict, ValidationError

from broker.sandbox import refusals
from broker.sandbox.config import OAuthApp, SandboxConfig
from broker.sandbox.records import Records
from broker.sandbox.refusals import OAuthError

ALGORITHM = "RS256"


class Claims(BaseModel):
    """What Coze requires of an assertion; further claims such as `session_name` are tolerated."""

    model_config = ConfigDict(strict=True)

    iss: str
    aud: str
    iat: int
    exp: int
    jti: str


class Assertions:
    """Tells which app signed an assertion, or why none did."""

    def __init__(self, config: SandboxConfig, now: Callable[[], float]) -> None:
        self._config = config
        self._now = now
        self._apps = {app.kid: app for app in config.apps}
        self._used: Records[int] = Records(config.max_records)

    def accept(self, assertion: str) -> OAuthApp:
        app = self._signer(assertion)
        claims = self._verified_claims(assertion, app)
        self._check_claims(claims, app)
        self._claim_once(claims)
        return app

    def _signer(self, assertion: str) -> OAuthApp:
        try:
            kid = jwt.get_unverified_header(assertion).get("kid")
        except jwt.PyJWTError as error:
            raise OAuthError(refusals.BAD_SIGNATURE) from error
        app = self._apps.get(kid) if isinstance(kid, str) else None
        if app is None:
            raise OAuthError(refusals.KID_UNKNOWN)
        return app

    def _verified_claims(self, assertion: str, app: OAuthApp) -> Claims:
        try:
            payload = jwt.PyJWS().decode(assertion, app.public_key_pem, algorithms=[ALGORITHM])
            return Claims.model_validate_json(payload)
        except jwt.PyJWTError as error:
            raise OAuthError(refusals.BAD_SIGNATURE) from error
        except ValidationError as error:
            raise OAuthError(refusals.BAD_CLAIMS) from error

    def _check_claims(self, claims: Claims, app: OAuthApp) -> None:
        now, leeway = self._now(), self._config.leeway_seconds
        checks = (
            (claims.iss == app.client_id, refusals.UNKNOWN_CLIENT),
            (claims.aud == self._config.audience, refusals.WRONG_AUDIENCE),
            (claims.exp > claims.iat, refusals.BAD_CLAIMS),
            (claims.exp > now - leeway, refusals.EXPIRED),
            (claims.iat <= now + leeway, refusals.NOT_YET_ISSUED),
            (len(claims.jti) >= self._config.min_jti_chars, refusals.JTI_SHORT),
        )
        for holds, refusal in checks:
            if not holds:
                raise OAuthError(refusal)

    def _claim_once(self, claims: Claims) -> None:
        key = f"{claims.iss}\n{claims.jti}"
        if key in self._used:
            raise OAuthError(refusals.JTI_USED)
        self._used.put(key, claims.exp)
