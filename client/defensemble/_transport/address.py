"""The address of a server, parsed from a URL."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from .._exceptions import InputError

DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 8000}
TLS_SCHEMES = ("https", "grpcs")


@dataclass(frozen=True)
class Address:
    """Scheme, host and port of a server."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host and port in the notation of URLs and gRPC targets, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        """The URL, port included."""
        return f"{self.scheme}://{self.netloc}"


def address_from_url(url: str) -> Address:
    """Parse the URL of a server, such as `http://localhost:8000`. The default port is 8000 for HTTP and 8001 for gRPC.

    Raises:
        InputError: The URL is not the URL of a server.
    """
    expected = "expected http://HOST:PORT, https://HOST:PORT, grpc://HOST:PORT or grpcs://HOST:PORT, such as http://localhost:8000"
    if not isinstance(url, str):
        raise InputError(f"url must be a str, or a list of them for several servers, got {type(url).__name__}; {expected}")
    if "://" not in url:
        raise InputError(f"the URL {url!r:.120} has no scheme; {expected}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InputError(f"the URL {url!r:.120} cannot be parsed ({error}); {expected}") from error
    if parts.scheme not in DEFAULT_PORTS:
        raise InputError(f"the URL {url!r:.120} has the unknown scheme {parts.scheme!r}; {expected}")
    if not parts.hostname:
        raise InputError(f"the URL {url!r:.120} has no host; {expected}")
    if not parts.hostname.isprintable() or " " in parts.hostname:
        raise InputError(f"the URL {url!r:.120} has a space or control character in its host name; {expected}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username or parts.password:
        raise InputError(f"the URL {url!r:.120} has more than scheme, host and port; {expected}")
    try:
        host = parts.hostname.encode("idna").decode("ascii")  # as DNS and the header Host need it
    except UnicodeError as error:
        raise InputError(f"the URL {url!r:.120} has an invalid host name ({error}); {expected}") from error
    return Address(parts.scheme, host, DEFAULT_PORTS[parts.scheme] if port is None else port)
