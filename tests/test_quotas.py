"""Which limits a caller is under."""

from __future__ import annotations

from broker.auth.caller import USERS_KEY_ID, Call, Caller
from broker.auth.quotas import Quotas

EVERYTHING = Quotas(requests_per_key=1, inflight_per_key=1, requests_per_origin=1, inflight_per_subject=1)
CALL = Call("192.0.2.1", "https://app.example", needs="token:mint")


def test_users_of_the_openid_provider_share_no_key_s_limit() -> None:
    """They have none; what stands in its place is the same for all of them."""
    user = Caller.with_id_token("anna", CALL)
    assert {limit.name for limit in EVERYTHING.of_request(user)} == {"subject", "ip", "origin"}
    places = {hold.bucket: hold.max_held for hold in EVERYTHING.of_uploads(user)}
    assert places == {f"key:{USERS_KEY_ID}": 0, "subject:anna": 1}
