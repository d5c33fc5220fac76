"""Which requests leave a row in the audit, and when: what changes who may do what before its answer, the rest
when it is over.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from broker.api.services import Services
from broker.observe import events
from broker.observe.events import Event
from broker.state.audit.row import of_event
from broker.state.revocations import Witness

REFUSED_AT_THE_DOOR = (401, 403, 429)
"""What is written down of calls that are otherwise none of the audit's business."""


async def record(broker: Services) -> None:
    """Write the request's row now. What it tells of is done only if this is.

    Raises :class:`~broker.errors.AuditUnavailable`.
    """
    event = events.current()
    row = of_event(event, event.action)
    if row is not None:
        await broker.audit.record(row)
        event.audited = True


def within(broker: Services, **detail: Any) -> Witness:
    """What writes the request's row into a transaction: it is there if what it tells of is. Whoever commits
    says so in the event's ``audited``: until then a refusal is still to be written.
    """

    async def tell(connection: AsyncConnection) -> None:
        event = events.current()
        row = of_event(event, event.action)
        if row is not None:
            await broker.audit.append_within(connection, replace(row, detail=detail))

    return tell


def note_ended(state: Mapping[str, Any], event: Event) -> None:
    """Have the row of a request that is over written soon. Waits for nothing, raises nothing."""
    broker: Services | None = state.get("services")
    if broker is None or event.audited:
        return
    if event.action is None and event.status not in REFUSED_AT_THE_DOOR:
        return
    row = of_event(event, event.action)
    if row is not None:
        broker.audit.note(row)
