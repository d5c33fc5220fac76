"""A real OpenID provider on loopback, and a user who logs in at it as a browser would."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urljoin, urlsplit

import httpx
import pytest

from tests.support import needs

CLIENTS = Path(__file__).parent.parent / "clients"
CLIENT_SECRET = "not-a-secret-at-all"
MAX_STEPS = 12


@dataclass
class OpenIdProvider:
    """A running ``oidc-provider``. Its client for ID tokens signed with ES256 is ``app-ES256``."""

    issuer: str
    redirect_uri: str
    api: str
    process: subprocess.Popen[str]

    def log_in(self, subject: str, *, client_id: str, **asked: str) -> dict[str, Any]:
        """All tokens of a user who goes through the authorization code flow (OpenID Connect Core §3.1)."""
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=")
        with httpx.Client(base_url=self.issuer, timeout=20) as browser:
            asking = {
                "client_id": client_id,
                "response_type": "code",
                "scope": "openid",
                "redirect_uri": self.redirect_uri,
                "code_challenge": challenge.decode(),
                "code_challenge_method": "S256",
                **asked,
            }
            code = self._authorize(browser, subject, asking)
            form = {
                "grant_type": "authorization_code",
                "code": code,
                "redirect_uri": self.redirect_uri,
                "code_verifier": verifier,
            }
            answer = browser.post("/token", data=form, auth=(client_id, CLIENT_SECRET))
        assert answer.status_code == 200, answer.text
        tokens: dict[str, Any] = answer.json()
        return tokens

    def id_token(self, subject: str, client_id: str = "app-ES256") -> str:
        """An ID token of ``subject``'s."""
        return str(self.log_in(subject, client_id=client_id)["id_token"])

    def use_new_keys(self) -> None:
        """Sign with keys that were not there before, and publish no others."""
        httpx.post(f"{self.issuer}/-/new-keys", timeout=20).raise_for_status()

    def stop(self) -> None:
        """Be gone; ``running_openid_provider`` can bring it back at the same address."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(10)

    def _authorize(self, browser: httpx.Client, subject: str, asking: dict[str, str]) -> str:
        """Follow the provider through login and consent to the code that it sends back."""
        answer = browser.get("/auth", params=asking)
        for _ in range(MAX_STEPS):
            if answer.is_redirect:
                target = urljoin(str(answer.url), answer.headers["location"])
                if target.startswith(self.redirect_uri):
                    return parse_qs(urlsplit(target).query)["code"][0]
                answer = browser.get(target)
            else:
                answer = _filled_in(browser, answer, subject)
        raise AssertionError(f"no code after {MAX_STEPS} steps: {answer.text}")


@contextmanager
def running_openid_provider(port: int = 0) -> Iterator[OpenIdProvider]:
    """An OpenID provider of this test's own."""
    node = needs.executable("node")
    if not (CLIENTS / "node_modules" / "oidc-provider").exists():
        needs.missing("oidc-provider is not installed: npm ci in tests/clients")
    process = subprocess.Popen(
        [node, "openid_provider.mjs", str(port)],
        cwd=CLIENTS,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the OpenID provider did not start"
    provider = OpenIdProvider(**json.loads(line), process=process)
    try:
        yield provider
    finally:
        if process.poll() is None:
            provider.stop()
        process.stdout.close()


@pytest.fixture(scope="session")
def openid_provider() -> Iterator[OpenIdProvider]:
    """One for all tests that take nothing away from it."""
    with running_openid_provider() as provider:
        yield provider


def _filled_in(browser: httpx.Client, page: httpx.Response, subject: str) -> httpx.Response:
    """Send the page's form: the login, or the consent."""
    assert page.status_code == 200, page.text
    action = re.search(r'<form[^>]* action="([^"]+)"', page.text)
    prompt = re.search(r'name="prompt" value="(\w+)"', page.text)
    assert action, page.text
    assert prompt, page.text
    form = {"prompt": prompt[1], "login": subject, "password": "any"}
    return browser.post(urljoin(str(page.url), action[1]), data=form)
