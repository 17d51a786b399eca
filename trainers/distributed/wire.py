"""Messages between workers, bounded in size and time, and a handshake with a shared secret.

A port also receives data from strangers: scanners, browsers, workers of another run. A message is
its length in 4 bytes (big endian), then its content. Received data is never executed or unpickled.

In the handshake a worker sends its index. If ZOO_CLUSTER_SECRET is set, each side proves by an HMAC
of the peer's nonce that it has the same secret; the secret itself is never sent. Connections are
not encrypted. Importing this module does not import TensorFlow.
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
LARGEST = 2**20 + 1  # bytes of a message; larger values are split
LARGEST_HELLO = 1000
_VERSION = 1


class Malformed(OSError):
    """Raised for received data that is not a message of a worker."""


def secret() -> bytes:
    """Returns the secret from the environment, b"" if there is none."""
    return os.environ.get(SECRET, "").strip().encode(errors="surrogateescape")


def printable(text: str, most: int = 1000) -> str:
    """Returns a peer's text, truncated and without control characters for the terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:most])


# --- messages -----------------------------------------------------------------------------------


def send(stream: socket.socket, message: bytes, seconds: float) -> None:
    """Sends a message; raises `TimeoutError` if the peer does not read it in time."""
    stream.settimeout(seconds)
    stream.sendall(len(message).to_bytes(4, "big") + message)


def receive(stream: socket.socket, seconds: float, largest: int = LARGEST) -> bytes:
    """Receives a whole message within `seconds`.

    Raises:
      TimeoutError: if the message is not complete in time.
      EOFError: if the connection ends.
      Malformed: if the message is larger than `largest` bytes.
    """
    until = time.monotonic() + seconds
    size = int.from_bytes(_exactly(stream, 4, until), "big")
    if size > largest:
        raise Malformed(f"a message of {size} bytes, at most {largest} are expected")
    return _exactly(stream, size, until)


def _exactly(stream: socket.socket, count: int, until: float) -> bytes:
    buffer = bytearray()
    while len(buffer) < count:
        seconds_left = until - time.monotonic()
        if seconds_left <= 0:
            raise TimeoutError
        stream.settimeout(seconds_left)
        piece = stream.recv(min(count - len(buffer), 2**16))
        if not piece:
            raise EOFError
        buffer += piece
    return bytes(buffer)


def readable(stream: socket.socket, seconds: float = 0.0) -> bool:
    """Returns whether data or the end of the connection arrives within `seconds`."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


# --- the handshake ------------------------------------------------------------------------------


def call(stream: socket.socket, index: int, count: int, key: bytes, seconds: float) -> str:
    """Runs a worker's side of the handshake.

    Args:
      stream: a connection to the chief.
      index: index of this worker.
      count: number of workers.
      key: the secret, or b"".
      seconds: time limit of each message.

    Returns:
      The reason why the chief refuses this worker, or this worker the chief; "" if the secret is
      proved or there is none. The chief may still refuse later.

    Raises:
      OSError, EOFError: if the other side is not a chief or closes the connection.
    """
    content = {"zoo": _VERSION, "worker": index, "count": count}
    if key:
        content["nonce"] = secrets.token_hex(16)
    hello = json.dumps(content).encode()
    send(stream, hello, seconds)
    if not key:
        return ""
    response = receive(stream, seconds, LARGEST_HELLO)
    try:
        values = json.loads(response)
        nonce, proof = str(values["nonce"]), str(values["proof"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return printable(response.decode(errors="replace"))
    if not _same(proof, _proof(key, "chief", nonce, hello)):
        return f"the chief has another secret: set the same {SECRET} on all workers."
    send(stream, _proof(key, "worker", nonce, hello).encode(), seconds)
    return ""


def answer(stream: socket.socket, count: int, key: bytes, seconds: float) -> tuple[int | None, str]:
    """Runs the chief's side of the handshake.

    Args:
      stream: an accepted connection.
      count: number of workers.
      key: the secret, or b"".
      seconds: time limit of each message.

    Returns:
      `(index, refusal)`: the worker's index and "", or None and the reason for the refusal.
    """
    try:
        hello = receive(stream, seconds, LARGEST_HELLO)
        content = json.loads(hello)
        version, index, workers = (content[name] for name in ("zoo", "worker", "count"))
        if not {type(index), type(workers)} <= {int}:
            return None, "the message is not valid."
        if version != _VERSION:
            return None, "the worker runs another version of the zoo."
        if workers != count or not 0 < index < count:
            return None, f"the run has {count} workers, not {workers} (worker {index})."
        if bool(key) != ("nonce" in content):
            return None, f"only one side has a secret: set {SECRET} on all workers or on none."
        if key:
            nonce = secrets.token_hex(16)
            proof = {"nonce": nonce, "proof": _proof(key, "chief", nonce, hello)}
            send(stream, json.dumps(proof).encode(), seconds)
            response = receive(stream, seconds, LARGEST_HELLO).decode(errors="replace")
            if not _same(response, _proof(key, "worker", nonce, hello)):
                return None, f"the worker has another secret: set the same {SECRET} on all workers."
    except TimeoutError:
        return None, "no message arrived in time."
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None, "the message is not valid."
    return index, ""


def _proof(key: bytes, side: str, nonce: str, hello: bytes) -> str:
    """Returns the HMAC of the chief's nonce and the hello, which holds the worker's nonce."""
    return hmac.new(key, f"{side} {nonce} ".encode() + hello, hashlib.sha256).hexdigest()


def _same(first: str, second: str) -> bool:
    return hmac.compare_digest(first.encode(errors="replace"), second.encode())
