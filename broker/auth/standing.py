"""Whether a credential that proved right is still good: it may have been revoked since, or its key."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from broker.auth.api_keys import ApiKey, ApiKeys
from broker.auth.caller import USERS_KEY_ID, Caller, Issued
from broker.errors import ExpiredCredential, InvalidCredential, RevokedCredential
from broker.state.revocations import Revocations


@dataclass(frozen=True)
class Standing:
    """Asks the stores, which answer from memory as long as the generation is the same.

    ``generation`` is the newest that is known of; without one the database itself is asked.
    """

    keys: ApiKeys
    revocations: Revocations
    now: Callable[[], float] = time.time

    async def check(self, caller: Caller, generation: object = None) -> Caller:
        """The caller, with the rights that its key has by now.

        Raises :class:`RevokedCredential` for a token, and for a key what a key of no use raises.
        """
        key = await self.check_revoked(caller, generation)
        if key is None:
            return caller
        self._check_times(caller, key)
        return caller if key == caller.key else caller.renewed(key)

    async def check_revoked(self, caller: Caller, generation: object = None) -> ApiKey | None:
        """The same for an upload that has begun: it may outlive its key's time, and its token's, but not
        their being revoked. Gives the key, where there is one.
        """
        if caller.issued is not None:
            await self._check_token(caller.issued, generation)
        if caller.key_id == USERS_KEY_ID:
            return None
        key = await self.keys.by_id(caller.key_id, generation=generation)
        if key is None:
            refusal = InvalidCredential if caller.issued is None else RevokedCredential
            raise refusal(log=f"API key {caller.key_id} is revoked")
        return key

    def _check_times(self, caller: Caller, key: ApiKey) -> None:
        """A rotation may have ended the secret since it was looked at, on another worker."""
        now, used = self.now(), caller.key.used if caller.key else None
        if key.has_expired(now):
            raise ExpiredCredential(log=f"API key {key.id} has expired")
        if used is not None and not key.is_live(used, now):
            raise ExpiredCredential(log=f"API key {key.id} was rotated: {used.hint} is over")

    async def _check_token(self, token: Issued, generation: object) -> None:
        if await self.revocations.cover(**token._asdict(), generation=generation):
            raise RevokedCredential(log="the token, its subject's, or its key's tokens were revoked")
