"""Authorities of the tests' own, and certificates from them or from nobody."""

from __future__ import annotations

import ssl
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.x509.oid import NameOID

Key = EllipticCurvePrivateKey | RSAPrivateKey

PEM = serialization.Encoding.PEM
DAY = timedelta(days=1)
SINCE, UNTIL = -10 * DAY, 30 * DAY
"""When a certificate is valid, from now, where nothing else is said."""
SHA256_WITH_RSA = bytes.fromhex("2a864886f70d01010b")
SHA1_WITH_RSA = bytes.fromhex("2a864886f70d010105")


@dataclass(frozen=True)
class Authority:
    """Vouches for whoever asks; nobody has it built in. All that it makes is in ``folder``."""

    folder: Path
    certificate: x509.Certificate
    key: Key

    @property
    def file(self) -> Path:
        """What is to be trusted."""
        return self.folder / "authority.pem"

    def issue(
        self,
        *names: str,
        since: timedelta = SINCE,
        until: timedelta = UNTIL,
        key: Key | None = None,
        purpose: x509.ObjectIdentifier | None = None,
    ) -> Path:
        """A file with a certificate for these names and addresses, and its key."""
        key = key or generate_private_key(SECP256R1())
        builder = _builder(_name(names[0]), self.certificate.subject, key, self.key, since, until)
        if purpose is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        return _written(self.folder, _for(names, builder).sign(self.key, hashes.SHA256()), key)

    def context(
        self, *names: str, since: timedelta = SINCE, until: timedelta = UNTIL, alpn: tuple[str, ...] = ()
    ) -> ssl.SSLContext:
        """A server's TLS with such a certificate."""
        return server_context(self.issue(*names, since=since, until=until), alpn)


def make_authority(folder: Path, name: str = "authority of the tests", key: Key | None = None) -> Authority:
    """A new one, whose certificate is in ``folder``."""
    key = key or generate_private_key(SECP256R1())
    builder = _builder(_name(name), _name(name), key, key, is_authority=True)
    authority = Authority(folder, builder.sign(key, hashes.SHA256()), key)
    authority.file.write_bytes(authority.certificate.public_bytes(PEM))
    return authority


def self_signed(folder: Path, *names: str) -> Path:
    """A file with a certificate that nobody vouches for, and its key."""
    key = generate_private_key(SECP256R1())
    builder = _builder(_name(names[0]), _name(names[0]), key, key)
    return _written(folder, _for(names, builder).sign(key, hashes.SHA256()), key)


def signed_over_sha1(pem: Path, signer: RSAPrivateKey) -> None:
    """Sign the certificate in a file anew, over a digest that no library signs one over any more.

    Both algorithms have names of the same length (RFC 8017 appendix C), so nothing else moves.
    """
    certificate = x509.load_pem_x509_certificate(pem.read_bytes())
    to_be_signed, whole = (
        der.replace(SHA256_WITH_RSA, SHA1_WITH_RSA)
        for der in (certificate.tbs_certificate_bytes, certificate.public_bytes(serialization.Encoding.DER))
    )
    signature = signer.sign(to_be_signed, PKCS1v15(), hashes.SHA1())
    signed = x509.load_der_x509_certificate(whole[: -len(signature)] + signature)
    key = serialization.load_pem_private_key(pem.read_bytes(), password=None)
    assert isinstance(key, Key)
    pem.write_bytes(_written(pem.parent, signed, key).read_bytes())


def server_context(pem: Path, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A server's TLS with the certificate and the key in a file, however weak."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(pem)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """One for all tests."""
    return make_authority(tmp_path_factory.mktemp("authority"))


def _name(name: str) -> x509.Name:
    kinds = (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME)
    return x509.Name([x509.NameAttribute(kind, name) for kind in kinds])


def _builder(  # noqa: PLR0917 - a certificate has as many
    subject: x509.Name,
    issuer: x509.Name,
    key: Key,
    signer: Key,
    since: timedelta = SINCE,
    until: timedelta = UNTIL,
    *,
    is_authority: bool = False,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    own, signers = key.public_key(), signer.public_key()
    return (
        x509.CertificateBuilder(issuer, subject, own, x509.random_serial_number(), now + since, now + until)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(own), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signers), critical=False)
    )


def _for(names: tuple[str, ...], builder: x509.CertificateBuilder) -> x509.CertificateBuilder:
    others = x509.SubjectAlternativeName([_general_name(name) for name in names])
    return builder.add_extension(others, critical=False)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _written(folder: Path, certificate: x509.Certificate, key: Key) -> Path:
    path = folder / f"{uuid.uuid4().hex}.pem"
    private = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + certificate.public_bytes(PEM))
    return path
