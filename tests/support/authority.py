"""An authority of the tests' own, and certificates from it."""

from __future__ import annotations

import datetime
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PEM = serialization.Encoding.PEM
DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Vouches for whoever asks."""

    folder: Path
    certificate: x509.Certificate
    key: Any

    @property
    def file(self) -> Path:
        """What is to be trusted."""
        return self.folder / "authority.pem"

    def context(self, *names: str, days: int = 2, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
        """A server's TLS for these names and addresses; over since yesterday when ``days`` is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        other_names = x509.SubjectAlternativeName([_general(name) for name in names])
        certificate = _builder(names[0], self.certificate.subject, key, days)
        signed = certificate.add_extension(other_names, critical=False).sign(self.key, hashes.SHA256())
        file = self.folder / f"server-{signed.serial_number:x}.pem"
        file.write_bytes(_private(key) + signed.public_bytes(PEM))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        return context


def make_authority(folder: Path) -> Authority:
    """A new one, whose certificate is in ``folder``."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority of the tests")])
    builder = _builder("authority of the tests", name, key, 2).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    authority = Authority(folder, builder.sign(key, hashes.SHA256()), key)
    authority.file.write_bytes(authority.certificate.public_bytes(PEM))
    return authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests."""
    return make_authority(tmp_path_factory.mktemp("authority"))


def _builder(common_name: str, issuer: x509.Name, key: Any, days: int) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer,
        x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)]),
        key.public_key(),
        x509.random_serial_number(),
        now - 10 * DAY,
        now + days * DAY,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _private(key: Any) -> bytes:
    form = serialization.PrivateFormat.PKCS8
    return bytes(key.private_bytes(PEM, form, serialization.NoEncryption()))
