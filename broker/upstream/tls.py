"""TLS as the broker does it on its way to Coze: always verified, set up by nothing but the settings."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi

from broker.settings.files import check_is_file


def make_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """Trusts the built-in authorities (certifi's) and the certificates in ``ca_file``.

    The environment has no say: not made by ``ssl.create_default_context``, which would write the keys of
    all connections where ``SSLKEYLOGFILE`` tells it to. Only HTTP/1.1 is offered (RFC 7301). Raises
    ``OSError`` for a file that can't be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # checks the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cafile=certifi.where())
    if ca_file is not None:
        check_is_file(ca_file)
        context.load_verify_locations(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    return context
