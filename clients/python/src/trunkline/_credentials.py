"""A node's credentials, the authorities that it trusts, and the addresses of gateways."""

from __future__ import annotations

import ipaddress
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import grpc

from ._errors import Error, ErrorKind, Status

# The port of a gateway, unless configured.
DEFAULT_PORT = 7420


@dataclass(frozen=True)
class Credentials:
    """A node's credentials, and the authorities whose gateways it trusts."""

    ca_certificate: bytes | None = field(default=None, repr=False)
    """Trusts gateways with a certificate of one of these authorities (PEM), and no others. Default:
    those of OpenSSL (or of the variable `SSL_CERT_FILE`), or else those that gRPC brings."""
    client_certificate: bytes | None = field(default=None, repr=False)
    """Presents this certificate (PEM); needs `client_key`."""
    client_key: bytes | None = field(default=None, repr=False)
    """The private key of the certificate (PEM)."""
    token: str | None = field(default=None, repr=False)
    """Sends this token."""

    def __post_init__(self) -> None:
        if (self.client_certificate is None) != (self.client_key is None):
            raise ValueError("client_certificate and client_key go together")
        if self.token is not None and not self.token.strip().isprintable():
            raise ValueError("the token has characters that a header cannot have")

    @property
    def metadata(self) -> list[tuple[str, str]]:
        """The metadata of each request."""
        return [("authorization", f"Bearer {self.token.strip()}")] if self.token else []

    def target(self, address: str) -> tuple[str, bool]:
        """Host and port of a gateway, and whether it is reached over TLS, from what people write: a
        URL, or a host and perhaps a port. Default: port 7420; TLS if these credentials have
        certificates."""

        def wrong(why: str) -> Error:
            message = f"{address!r} is no gateway's address: {why}"
            return Error(ErrorKind.ADDRESS, Status(grpc.StatusCode.INVALID_ARGUMENT, message))

        scheme, separator, rest = address.partition("://")
        if not separator:
            tls = (self.ca_certificate or self.client_certificate) is not None
            scheme, rest = "https" if tls else "http", address
        if scheme not in ("http", "https"):
            raise wrong("the scheme must be http:// or https://")
        try:
            # The address of IPv6 alone, without the brackets of a URL.
            host = f"[{ipaddress.IPv6Address(rest)}]"
        except ValueError:
            host = rest.removesuffix("/")
        try:
            parts = urlsplit(f"{scheme}://{host}")
            port = parts.port
        except ValueError:
            raise wrong("the port is no number from 1 to 65535") from None
        if not parts.hostname or any(char.isspace() for char in host):
            raise wrong("it names no host")
        if parts.path or parts.query or parts.fragment or "@" in host:
            raise wrong("it must be a host and a port, without anything after or before them")
        if port == 0 or host.endswith(":"):
            raise wrong("the port is no number from 1 to 65535")
        return (host if port else f"{host}:{DEFAULT_PORT}"), scheme == "https"

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """For TLS."""
        authorities = self.ca_certificate
        if authorities is None:
            system = ssl.get_default_verify_paths().cafile
            authorities = Path(system).read_bytes() if system else None
        return grpc.ssl_channel_credentials(authorities, self.client_key, self.client_certificate)
