"""One page over HTTP, from public addresses alone, within bounds of time and size.

A name is resolved once, every address that it has is checked, and the connection goes to the very
address that was checked: what the name means a moment later changes nothing. Redirects are not
followed here; who follows one asks again, and is checked again. Proxies of the environment are not
used: they would resolve the name anew.
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


class Refused(Exception):
    """This page will not be fetched; the message is the reason, as it is counted."""


class Failed(Exception):
    """The page could not be fetched now; another time it may."""


@dataclass(frozen=True)
class Answer:
    """What a server sent; the body whole, and unpacked."""

    url: str
    status: int
    headers: list[tuple[str, str]]
    body: bytes
    address: str

    def header(self, name: str) -> str:
        """Returns a header, or ""."""
        return next((v for k, v in self.headers if k.lower() == name.lower()), "")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, whatever it is wrapped in."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if not inner and found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner:
            return is_public(str(inner))
        if found.is_site_local or int(found) < 2**32:  # the latter: IPv4-compatible, long retired
            return False
    return found.is_global and not (
        found.is_multicast or found.is_reserved or found.is_private or found.is_unspecified
    )


def checked_addresses(host: str, port: int, allow_private: bool) -> list[str]:
    """Returns the addresses of a host; raises Refused where one of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Failed("unknown host") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private and not all(map(is_public, addresses)):
        raise Refused("address is not public")
    return addresses


def split_url(url: str) -> tuple[str, str, int, str]:
    """Returns (scheme, host, port, path with query); raises Refused for what is no web address."""
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        raise Refused("no web address") from None
    if scheme not in ("http", "https") or not host or parts.username or len(url) > 2000:
        raise Refused("no web address")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if any(ord(c) <= 32 or ord(c) >= 127 for c in path + host):
        raise Refused("no web address")
    return scheme, host, port or (443 if scheme == "https" else 80), path


def get(url: str, timeout: float, max_bytes: int, allow_private: bool = False) -> Answer:
    """Fetches a page.

    Args:
      url: its address.
      timeout: seconds, all of it: connecting, sending and receiving.
      max_bytes: of the body, packed and unpacked.
      allow_private: whether addresses that are not public may be connected to.

    Raises:
      Refused: by what it is: no web address, not public, too large.
      Failed: the server or the network failed, or the time was over.
    """
    scheme, host, port, path = split_url(url)
    until = time.monotonic() + timeout
    failure: Exception = Failed("no address")
    for address in checked_addresses(host, port, allow_private):
        left = until - time.monotonic()
        if left <= 0:
            raise Failed("timeout")
        try:
            plain = socket.create_connection((address, port), timeout=left)
        except OSError as error:
            failure = Failed("no connection")
            failure.__cause__ = error
            continue
        return _exchange(plain, url, scheme, host, path, address, until, max_bytes)
    raise failure


def _exchange(plain, url, scheme, host, path, address, until, max_bytes) -> Answer:
    # A server that sends a byte now and then never runs into a socket's own timeout. TLS takes the
    # socket over, and leaves `plain` empty: what is shut is a second handle to the connection.
    guard = plain.dup()
    clock = threading.Timer(max(0.0, until - time.monotonic()), _shut, [guard])
    clock.daemon = True
    clock.start()
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(guard.close)
            stack.callback(plain.close)
            stream = plain
            if scheme == "https":
                stream = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
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
                raise Refused("too large")
            body = response.read(max_bytes + 1)
            if len(body) > max_bytes:
                raise Refused("too large")
            # A connection that was shut when the time was over looks like the end of the body.
            if time.monotonic() >= until:
                raise Failed("timeout")
            if length.isdigit() and len(body) < int(length):
                raise Failed("cut off")
            headers = response.getheaders()
            answer = Response(response.status, [(k.lower(), v) for k, v in headers], body)
            body = answer.body(max_bytes, ("content-encoding",))
            return Answer(url, response.status, headers, body, address)
    except Unreadable as error:
        if error.args[0] == TOO_LARGE:
            raise Refused("too large") from None
        raise Failed("bad answer") from error
    except ssl.SSLCertVerificationError:
        raise Refused("certificate") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        late = time.monotonic() >= until
        raise Failed("timeout" if late else "bad answer") from error
    finally:
        clock.cancel()


def _shut(guard: socket.socket) -> None:
    with contextlib.suppress(OSError):
        guard.shutdown(socket.SHUT_RDWR)
