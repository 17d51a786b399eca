"""Messages between workers: bounded in size and in time, and a handshake with a shared secret.

A port hears from strangers too: scanners, browsers, workers of another run. A message is its length
in 4 bytes (big endian), then its content. Nothing that is received is ever executed or unpickled.

The handshake: a worker says who it is. Where ZOO_CLUSTER_SECRET is set, both sides prove by HMAC of
each other's nonce that they have the same secret, which itself is never sent. Connections are not
encrypted. Loads no TensorFlow.
"""

import hashlib
import hmac
import json
import os
import secrets
import select
import socket
import time

SECRET = "ZOO_CLUSTER_SECRET"
LARGEST = 2**20 + 1  # bytes of a message; larger values are sent in several
LARGEST_HELLO = 1000
_VERSION = 1


class Malformed(OSError):
    """What was received is no message of a worker."""


def secret() -> bytes:
    """Returns the secret that the environment gives, b"" where it gives none."""
    return os.environ.get(SECRET, "").strip().encode(errors="surrogateescape")


def printable(text: str, most: int = 1000) -> str:
    """Returns what a peer says, cut, and without control characters that a terminal would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])


# --- messages -----------------------------------------------------------------------------------


def send(stream: socket.socket, message: bytes, seconds: float) -> None:
    """Sends a message; raises `TimeoutError` where the peer does not take it in time."""
    stream.settimeout(seconds)
    stream.sendall(len(message).to_bytes(4, "big") + message)


def receive(stream: socket.socket, seconds: float, largest: int = LARGEST) -> bytes:
    """Receives a message, all of it within so many seconds.

    Raises:
      TimeoutError: it did not come in time.
      EOFError: the connection ended.
      Malformed: it is larger than `largest`.
    """
    until = time.monotonic() + seconds
    size = int.from_bytes(_exactly(stream, 4, until), "big")
    if size > largest:
        raise Malformed(f"a message of {size} bytes, at most {largest} are expected")
    return _exactly(stream, size, until)


def _exactly(stream: socket.socket, count: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < count:
        left = until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        stream.settimeout(left)
        piece = stream.recv(min(count - len(found), 2**16))
        if not piece:
            raise EOFError
        found += piece
    return bytes(found)


def readable(stream: socket.socket, seconds: float = 0.0) -> bool:
    """Whether something, or the end of the connection, comes within so many seconds."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


# --- the handshake ------------------------------------------------------------------------------


def call(stream: socket.socket, index: int, count: int, key: bytes, seconds: float) -> str:
    """Says which worker calls, and proves that it has the secret.

    Args:
      stream: a connection to the chief.
      index: of this worker.
      count: of all workers.
      key: the secret, or b"".
      seconds: for each message.

    Returns:
      Why the chief refuses, or this worker refuses the chief; "" where the secret is proved or
      there is none. The chief may still refuse.

    Raises:
      OSError, EOFError: the other side is no chief, or is gone.
    """
    hello = {"zoo": _VERSION, "worker": index, "count": count}
    if key:
        hello["nonce"] = secrets.token_hex(16)
    said = json.dumps(hello).encode()
    send(stream, said, seconds)
    if not key:
        return ""
    answer = receive(stream, seconds, LARGEST_HELLO)
    try:
        found = json.loads(answer)
        nonce, proof = str(found["nonce"]), str(found["proof"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return printable(answer.decode(errors="replace"))
    if not _same(proof, _proof(key, "chief", nonce, said)):
        return f"it has another secret: give all workers the same {SECRET}."
    send(stream, _proof(key, "worker", nonce, said).encode(), seconds)
    return ""


def answer(stream: socket.socket, count: int, key: bytes, seconds: float) -> tuple[int | None, str]:
    """Receives who calls; returns which worker it is, and why it is not let in.

    Args:
      stream: a connection that was accepted.
      count: of all workers.
      key: the secret, or b"".
      seconds: for each message.
    """
    try:
        said = receive(stream, seconds, LARGEST_HELLO)
        hello = json.loads(said)
        version, index, of = (hello[name] for name in ("zoo", "worker", "count"))
        if not {type(index), type(of)} <= {int}:
            return None, "not understood."
        if version != _VERSION:
            return None, "another version of the zoo."
        if of != count or not 0 < index < count:
            return None, f"worker {index} of {of} called, this run has {count} workers."
        if bool(key) != ("nonce" in hello):
            return None, f"one of both has no secret: give all workers the same {SECRET}, or none."
        if key:
            nonce = secrets.token_hex(16)
            proof = {"nonce": nonce, "proof": _proof(key, "chief", nonce, said)}
            send(stream, json.dumps(proof).encode(), seconds)
            proved = receive(stream, seconds, LARGEST_HELLO).decode(errors="replace")
            if not _same(proved, _proof(key, "worker", nonce, said)):
                return None, f"another secret: give all workers the same {SECRET}."
    except TimeoutError:
        return None, "nothing was said."
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None, "not understood."
    return index, ""


def _proof(key: bytes, side: str, nonce: str, hello: bytes) -> str:
    """HMAC of the chief's nonce and of the hello, which holds the worker's; one for each side."""
    return hmac.new(key, f"{side} {nonce} ".encode() + hello, hashlib.sha256).hexdigest()


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(errors="replace"), other.encode())
