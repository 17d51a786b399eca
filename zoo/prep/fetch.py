"""Fetches one page over HTTP, only from public IP addresses, within limits of time and size.

A host name is resolved once, all of its addresses are checked, and the connection goes to a checked
address, so DNS rebinding has no effect. Redirects are not followed here: the caller fetches the new
URL, which is checked again. Proxies of the environment are ignored, because a proxy would resolve
the name again.
"""

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from zoo.prep.reading.response import TOO_LARGE, Response, Unreadable

AGENT = "keras-zoo"
USER_AGENT = f"{AGENT}/0.1 (collects text for language models; obeys robots.txt)"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class FetchRefused(Exception):
    """A page that must not be fetched; the message is the reason in the counts."""


class FetchFailed(Exception):
    """A page that could not be fetched now; a retry may succeed."""


@dataclass(frozen=True)
class FetchResponse:
    """The response of a server; the body is complete and its content coding removed."""

    url: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    address: str

    def header(self, name: str) -> str:
        """Returns the value of a header, or ""."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), "")


def is_public(address: str) -> bool:
    """Returns whether an IP address is public; also checks an IPv4 address inside IPv6."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if not inner and ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if ip.is_site_local or int(ip) < 2**32:  # the latter: deprecated IPv4-compatible addresses
            return False
    return ip.is_global and not (
        ip.is_multicast or ip.is_reserved or ip.is_private or ip.is_unspecified
    )


def resolve_host(host: str, port: int, allow_private: bool) -> list[str]:
    """Returns the IP addresses of a host; raises `FetchRefused` if one of them is not public."""
    try:
        entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise FetchFailed("unknown host") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in entries))
    if not allow_private and not all(map(is_public, addresses)):
        raise FetchRefused("address is not public")
    return addresses


def split_url(url: str) -> tuple[str, str, int, str]:
    """Returns (scheme, host, port, path with query); raises `FetchRefused` for an invalid URL."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise FetchRefused("invalid URL") from None
    if scheme not in ("http", "https") or not host or parts.username or len(url) > 2000:
        raise FetchRefused("invalid URL")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(c) <= 32 or ord(c) >= 127 for c in path + host):
        raise FetchRefused("invalid URL")
    return scheme, host, port or (443 if scheme == "https" else 80), path


def get(url: str, timeout: float, max_bytes: int, allow_private: bool = False) -> FetchResponse:
    """Fetches a page.

    Args:
      url: URL of the page.
      timeout: seconds for connecting, sending and receiving together.
      max_bytes: limit of the body, both before and after decompression.
      allow_private: whether connections to IP addresses that are not public are allowed.

    Raises:
      FetchRefused: the URL is invalid or not public, the certificate is invalid, or the body is too
        large.
      FetchFailed: the server or the network failed, or the timeout passed.
    """
    scheme, host, port, path = split_url(url)
    deadline = time.monotonic() + timeout
    failure: Exception = FetchFailed("no address")
    for address in resolve_host(host, port, allow_private):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise FetchFailed("timeout")
        try:
            connection = socket.create_connection((address, port), timeout=remaining)
        except OSError as error:
            failure = FetchFailed("no connection")
            failure.__cause__ = error
            continue
        return _exchange(connection, url, scheme, host, path, address, deadline, max_bytes)
    raise failure


def _exchange(raw_socket, url, scheme, host, path, address, deadline, max_bytes) -> FetchResponse:
    # A server that sends single bytes never reaches the socket's own timeout, so a timer shuts the
    # connection down. It needs a second handle, because TLS detaches `raw_socket`.
    duplicate = raw_socket.dup()
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [duplicate])
    timer.daemon = True
    timer.start()
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(duplicate.close)
            stack.callback(raw_socket.close)
            stream = raw_socket
            if scheme == "https":
                stream = ssl.create_default_context().wrap_socket(raw_socket, server_hostname=host)
                stack.callback(stream.close)
            connection = http.client.HTTPConnection(host)
            connection.sock = stream
            name = f"[{host}]" if ":" in host else host
            port = urlsplit(url).port
            connection.putrequest("GET", path, skip_host=True, skip_accept_encoding=True)
            connection.putheader("Host", f"{name}:{port}" if port else name)
            connection.putheader("User-Agent", USER_AGENT)
            connection.putheader("Accept", "text/html,application/xhtml+xml,text/plain;q=0.9")
            connection.putheader("Accept-Encoding", "identity")
            connection.putheader("Connection", "close")
            connection.endheaders()
            response = connection.getresponse()
            stack.callback(response.close)
            length = response.getheader("Content-Length") or ""
            if length.isdigit() and int(length) > max_bytes:
                raise FetchRefused("too large")
            body = response.read(max_bytes + 1)
            if len(body) > max_bytes:
                raise FetchRefused("too large")
            # A connection that the timer shut down looks like the end of the body.
            if time.monotonic() >= deadline:
                raise FetchFailed("timeout")
            if length.isdigit() and len(body) < int(length):
                raise FetchFailed("cut off")
            headers = response.getheaders()
            parsed_response = Response(response.status, [(k.lower(), v) for k, v in headers], body)
            body = parsed_response.body(max_bytes, ("content-encoding",))
            return FetchResponse(url, response.status, headers, body, address)
    except Unreadable as error:
        if error.args[0] == TOO_LARGE:
            raise FetchRefused("too large") from None
        raise FetchFailed("invalid response") from error
    except ssl.SSLCertVerificationError:
        raise FetchRefused("certificate") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        timed_out = time.monotonic() >= deadline
        raise FetchFailed("timeout" if timed_out else "invalid response") from error
    finally:
        timer.cancel()


def _shut_down(duplicate: socket.socket) -> None:
    with contextlib.suppress(OSError):
        duplicate.shutdown(socket.SHUT_RDWR)
