"""Who may administer API keys, and how their rules are told, on whichever path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import Request

from broker.api import gate
from broker.api.services import services
from broker.auth.api_keys import ApiKeys
from broker.auth.key_rules import KeyRulesError
from broker.auth.scopes import KEYS_ADMIN
from broker.errors import InvalidRequest


async def administered_keys(request: Request) -> ApiKeys:
    """The store of keys, for a caller whose key has the scope ``keys:admin``.

    Nothing is changed while it could not be written down. Such a key is root among keys: it may give any
    scope to any key, itself and its like included, and may revoke itself. A publishable key never has it.
    Raises a refusal of the 401, 403 or 429 family, or :class:`~broker.errors.AuditUnavailable`.
    """
    broker = services(request)
    caller = await broker.authenticator.server(request, KEYS_ADMIN)
    await gate.enter(broker, caller)
    if request.method != "GET":
        await broker.audit.ping()
    return broker.keys


@contextmanager
def rules_told() -> Iterator[None]:
    """What breaks the rules of keys becomes a refusal with their sentences."""
    try:
        yield
    except KeyRulesError as error:
        raise InvalidRequest(str(error)) from None
