"""Every refusal of the sandbox, in Coze's two shapes.

    ApiError    code, msg                     the files API and unknown paths
    OAuthError  error_code, error_message     the token endpoint

Codes are Coze's. The HTTP status of its upload errors is not documented: business errors
come with 200 here, as the measured calls do, a bad token with 401, an unknown path with 404.
Of the token endpoint one answer is known, 401 `invalid_client` for a foreign `kid`: what says
who signs follows it, and what is wrong with the request or its times is 400.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    code: int
    msg: str
    status: int = 200


UNKNOWN_PATH = Refusal(4000, "The requested path does not exist", 404)
WRONG_METHOD = Refusal(4000, "The method is not allowed for this path", 405)
BAD_PARAMETER = Refusal(4000, "The request parameter is invalid", 400)
CONTENT_MISMATCH = Refusal(
    4000,
    "The file content or filename is invalid; make sure that the file extension matches the file content",
)
NO_PERMISSION = Refusal(4101, "The token does not have the permission for this resource")
FILE_NOT_FOUND = Refusal(4200, "The file does not exist")
EMPTY_FILE = Refusal(4300, "The file is empty, or the Content-Type is not multipart/form-data")
SEVERAL_FILES = Refusal(4301, "Only one file can be uploaded at a time")
FILE_TOO_LARGE = Refusal(4302, "The file exceeds the maximum size")
TYPE_UNSUPPORTED = Refusal(4303, "The file type is not supported")
BAD_FILE = Refusal(4304, "The file could not be read from the form")
INTERNAL = Refusal(5000, "Internal error", 500)
INVALID_TOKEN = Refusal(700012006, "access token invalid", 401)


class ApiError(Exception):
    """Refused by the files API; `body_unread` says that the rest of the request will not be read."""

    def __init__(self, refusal: Refusal, *, body_unread: bool = False) -> None:
        super().__init__(refusal.msg)
        self.refusal = refusal
        self.body_unread = body_unread


@dataclass(frozen=True)
class OAuthRefusal:
    error_code: str
    error_message: str
    status: int


KID_UNKNOWN = OAuthRefusal("invalid_client", "invalid jwt: kid not been registred", 401)
BAD_SIGNATURE = OAuthRefusal("invalid_client", "invalid jwt: the signature does not verify", 401)
UNKNOWN_CLIENT = OAuthRefusal("invalid_client", "invalid jwt: iss is not the client of this kid", 401)
NO_ASSERTION = OAuthRefusal("invalid_request", "missing jwt in the Authorization header", 400)
BAD_CLAIMS = OAuthRefusal("invalid_request", "invalid jwt: iss, aud, iat, exp and jti are required", 400)
WRONG_AUDIENCE = OAuthRefusal("invalid_request", "invalid jwt: aud is not this host", 400)
EXPIRED = OAuthRefusal("invalid_request", "invalid jwt: expired", 400)
NOT_YET_ISSUED = OAuthRefusal("invalid_request", "invalid jwt: iat lies in the future", 400)
JTI_SHORT = OAuthRefusal("invalid_request", "invalid jwt: jti is too short", 400)
JTI_USED = OAuthRefusal("invalid_request", "invalid jwt: jti has been used", 400)
BAD_BODY = OAuthRefusal("invalid_request", "the body is not a valid token request", 400)
SCOPE_UNSUPPORTED = OAuthRefusal("invalid_request", "scope is only for channel apps", 400)
WRONG_GRANT = OAuthRefusal("unsupported_grant_type", "grant_type must be the jwt-bearer grant", 400)


class OAuthError(Exception):
    """Refused by the token endpoint."""

    def __init__(self, refusal: OAuthRefusal) -> None:
        super().__init__(refusal.error_message)
        self.refusal = refusal
