"""Fresh credentials for one sandbox: a server app, a browser app and a personal access token."""

import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from broker.sandbox.config import RETRIEVE_FILE, UPLOAD_FILE, OAuthApp, SandboxConfig, StaticToken


@dataclass(frozen=True)
class AppCredentials:
    """What the owner of an OAuth app holds."""

    client_id: str
    public_key_id: str
    private_key_pem: str = field(repr=False)


@dataclass(frozen=True)
class Credentials:
    """The server app may upload and retrieve, the browser app only upload."""

    api_token: str = field(repr=False)
    server_app: AppCredentials
    browser_app: AppCredentials

    def write_keys(self, directory: Path) -> tuple[Path, Path]:
        """Write both private keys, readable by their owner only; answer (server, browser)."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        server = _write_private(directory / "server-app.pem", self.server_app.private_key_pem)
        browser = _write_private(directory / "browser-app.pem", self.browser_app.private_key_pem)
        return server, browser

    def environment(self, base_url: str, key_files: tuple[Path, Path]) -> dict[str, str]:
        """The broker's settings for this sandbox, by the names that Coze's own examples use."""
        server_key, browser_key = key_files
        return {
            "COZE_API_BASE": base_url,
            "COZE_API_TOKEN": self.api_token,
            **_app_environment("COZE_JWT_OAUTH_", self.server_app, server_key),
            **_app_environment("COZE_BROWSER_OAUTH_", self.browser_app, browser_key),
        }


def generate(audience: str) -> tuple[SandboxConfig, Credentials]:
    """Make two apps with RSA-2048 keys and one PAT, and the configuration that accepts them."""
    both = frozenset({UPLOAD_FILE, RETRIEVE_FILE})
    server_app, server_owner = _new_app(both)
    browser_app, browser_owner = _new_app(frozenset({UPLOAD_FILE}))
    token = "pat_" + secrets.token_urlsafe(48)
    config = SandboxConfig(
        audience=audience,
        apps=(server_app, browser_app),
        tokens=(StaticToken(token=token, permissions=both),),
    )
    return config, Credentials(api_token=token, server_app=server_owner, browser_app=browser_owner)


def _new_app(permissions: frozenset[str]) -> tuple[OAuthApp, AppCredentials]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    client_id = str(10**12 + secrets.randbelow(9 * 10**12))
    kid = secrets.token_urlsafe(32)
    app = OAuthApp(client_id, kid, _public_pem(key), permissions)
    return app, AppCredentials(client_id, kid, _private_pem(key))


def _public_pem(key: rsa.RSAPrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode("ascii")
    )


def _private_pem(key: rsa.RSAPrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode("ascii")


def _write_private(path: Path, text: str) -> Path:
    # Unlinking first leaves no wider mode, and no symbolic link, of an older file in force.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text)
    return path


def _app_environment(prefix: str, app: AppCredentials, key_file: Path) -> dict[str, str]:
    return {
        f"{prefix}CLIENT_ID": app.client_id,
        f"{prefix}PUBLIC_KEY_ID": app.public_key_id,
        f"{prefix}PRIVATE_KEY_FILE_PATH": str(key_file),
    }
