"""Whose a file at Coze is: of the upload that brought it through the broker, or of the first that a direct
upload was confirmed with. So no two uploads have a receipt for one file.
"""

from __future__ import annotations

from broker.api.services import Services
from broker.settings.fields import COZE_MAX_TTL_SECONDS

CLOCK_MARGIN_SECONDS = 60
"""How far Coze's clock may be behind ours."""


async def own(broker: Services, file_id: str, upload: str) -> bool:
    """Make a file this upload's; False when it is another one's already.

    Raises :class:`~broker.errors.StoreUnavailable`.
    """
    return await broker.holds.hold(f"file:{file_id}", upload, ttl_seconds=seconds_of_interest(broker))


def seconds_of_interest(broker: Services) -> int:
    """For so long a token may be alive that could vouch for a file that is at Coze now."""
    return COZE_MAX_TTL_SECONDS + broker.settings.broker_upload_max_seconds + 2 * CLOCK_MARGIN_SECONDS
