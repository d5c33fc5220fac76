"""The running service keeps to ``openapi.yaml``."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from broker.api.status import contract
from broker.app import ROUTES
from tests.support.broker_process import Broker

# That a PDF must look like one, or how long a token may live, is policy: no schema says it.
NOT_FOR_A_SCHEMA_TO_SAY: list[Any] = [positive_data_acceptance]
ADMINISTRATION = ("/keys", "/api/permission_api/")
# A console of Coze's puts marks of its own into every query; no schema can say that they are passed over.
OPEN_QUERIES = ("list_personal_access_tokens", "get_personal_access_token_and_permission")

schema = schemathesis.openapi.from_dict(contract())
# The calls below have a key. A made-up signature beside it would only have them refused.
schema.config.generation.update(with_security_parameters=False)
# What is wrong and too large besides is told the latter.
_negative = schema.config.checks.negative_data_rejection
_negative.expected_statuses = [*_negative.expected_statuses, "413"]


@schema.parametrize()
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_service_answers_as_its_contract_says(
    case: schemathesis.Case[Any], session_broker: Broker
) -> None:
    """Made-up requests, well-formed and not, with a valid key get the statuses and bodies promised."""
    path = case.operation.path
    key = session_broker.admin_key if path.startswith(ADMINISTRATION) else None
    excluded = [negative_data_rejection] if path.endswith(OPEN_QUERIES) else []
    case.call_and_validate(
        base_url=session_broker.url,
        headers=session_broker.auth(key),
        excluded_checks=[*NOT_FOR_A_SCHEMA_TO_SAY, *excluded],
    )


def test_every_route_is_in_the_contract() -> None:
    routes = {route.path for route in ROUTES}
    assert routes == set(contract()["paths"])


@pytest.mark.parametrize("path", sorted(contract()["paths"]))
def test_the_contract_is_served_and_names_no_other_host(broker: Broker, path: str) -> None:
    served: dict[str, Any] = httpx.get(f"{broker.url}/openapi.json").json()
    assert served["paths"][path] == contract()["paths"][path]
    assert served["servers"] == [{"url": "/"}]
