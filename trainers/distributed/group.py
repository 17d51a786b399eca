"""Messages between workers other than gradients: agreement, shared decisions, and heartbeats.

Each worker has one TCP connection to the chief. The connections are made at the chief's address
before TensorFlow's server takes over the port, and stay open afterwards. When a peer dies, a
collective operation hangs or fails with an internal message. Here instead the kernel closes the
dead process's connection, or its heartbeats stop, and all other workers report its name and end.

Messages are bytes and JSON, bounded by trainers/distributed/wire.py; received data is never
executed. While workers connect, a peer with invalid, slow or missing messages is refused; later
such a peer ends the run. Importing this module does not import TensorFlow.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import queue
import socket
import threading
import time

from trainers.distributed import wire
from trainers.distributed.cluster import Cluster
from zoo.errors import RunError, UsageError

_LOG = logging.getLogger(__name__)

WAIT = 900.0  # seconds until all workers must be connected
REPORT_AFTER = 5.0  # seconds until a worker reports which others it waits for
HELLO = 5.0  # seconds for each message of the handshake
_CALLERS = 128  # maximum number of simultaneous handshakes
BEAT, SILENCE = 3.0, 30.0  # seconds between heartbeats, and until a silent worker is lost
_AGAIN = "run the same command on all workers to resume from the last checkpoint"
# A value may be split into several messages: parts, then the last part as a value.
_PART, _VALUE, _BEAT, _FAILED, _BYE = b"p", b"v", b"b", b"f", b"e"
_WAITING = 1000  # maximum number of received values that are not read yet
# Maximum bytes of a value from a worker, and from the chief, which sends the training state.
_LARGEST_MESSAGE, _LARGEST_STATE = 2**16, 2**36
_WELCOME = b"welcome"


class LocalGroup:
    """Single-process group: every collective is a no-op."""

    chief, index, count = True, 0, 1

    def connect(self) -> None:
        """Waits until all workers are connected."""

    def check_same(self, what: str, fingerprint: str) -> None:
        """Raises `UsageError` on all workers unless all have the same fingerprint."""

    def share(self, value=None):
        """Returns the chief's value (JSON or bytes) on every worker."""
        return value

    def any(self, *flags: bool) -> list[bool]:
        """Returns for each flag whether it is set on any worker."""
        return list(flags)

    def each(self, text: str) -> list[str]:
        """Returns the texts of all workers, in the order of the workers."""
        return [text]

    @contextlib.contextmanager
    def together(self):
        """Returns a context that ends on all workers together; if one fails, all end."""
        yield


class WorkerGroup(LocalGroup):
    """The connections of one worker, from `connect` to the end of `together`.

    All workers must call `check_same`, `share`, `any` and `each` in the same order.

    Args:
      cluster: the workers, and the index of this one.
      leave: called with a message if another worker is lost; ends the process.
      last: called by the default `leave` before it ends the process.
    """

    def __init__(self, cluster: Cluster, leave=None, last=None):
        self.cluster = cluster
        self.index, self.count = cluster.index, len(cluster.workers)
        self.chief = self.index == 0
        self._secret = wire.secret()
        self._leave = leave or functools.partial(_leave, last=last)
        self._peers: dict[int, _Peer] = {}
        self._ending = threading.Event()
        self._reporting = threading.Lock()

    def connect(self) -> None:
        """Waits until all workers are connected.

        Raises:
          RunError: if this worker's address is in use or belongs to another machine, or other
            workers do not connect in time.
        """
        connections = self._listen() if self.chief else {0: self._call()}
        for index, connection in connections.items():
            largest = _LARGEST_MESSAGE if self.chief else _LARGEST_STATE
            self._peers[index] = _Peer(index, connection, self._lost, largest)
        for peer in self._peers.values():  # `_lost` needs all peers, so none starts earlier
            peer.start()

    # --- collectives ----------------------------------------------------------------------------

    def check_same(self, what: str, fingerprint: str) -> None:
        own = hashlib.sha256(fingerprint.encode(errors="surrogateescape")).digest()
        differ = [i for i, other in self._gather(own).items() if other != own]
        line = ""
        if differ:
            line = (
                f"All workers must have the same {what}. Received: "
                f"{', '.join(map(self.cluster.name, differ))} differs from {self.cluster.name(0)}."
            )
        line = self.share(line)
        if line:
            error = UsageError(line)
            error.ends_all = True
            raise error

    def share(self, value=None):
        if not self.chief:
            message = self._peers[0].receive()
            try:
                return message[1:] if message[:1] == b"b" else json.loads(message[1:])
            except (ValueError, RecursionError):
                raise self._invalid_message(0) from None
        message = b"b" + value if isinstance(value, bytes) else b"j" + json.dumps(value).encode()
        for peer in self._peers.values():
            peer.send(_VALUE, message)
        return value

    def any(self, *flags: bool) -> list[bool]:
        own = bytes(flags)
        rows = [own]
        for index, row in self._gather(own).items():
            if len(row) != len(own):
                raise self._invalid_message(index)
            rows.append(row)
        return [
            bool(flag) for flag in self.share([max(column) for column in zip(*rows, strict=True)])
        ]

    def each(self, text: str) -> list[str]:
        own = wire.printable(text)
        others = self._gather(own.encode(errors="replace")).values()
        return self.share([own, *(wire.printable(o.decode(errors="replace")) for o in others)])

    def _gather(self, message: bytes) -> dict[int, bytes]:
        """Sends the message to the chief; returns the other workers' messages on the chief."""
        if self.chief:
            return {index: peer.receive() for index, peer in sorted(self._peers.items())}
        self._peers[0].send(_VALUE, message)
        return {}

    def _invalid_message(self, index: int) -> RunError:
        return RunError(f"{self.cluster.name(index)} sent an invalid message")

    # --- ending ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except BaseException as error:
            if getattr(error, "ends_all", False):
                self._close()
                raise
            if _is_collective_error(error):
                # Most likely a peer has died. The thread that reads its connection notices this at
                # once, or after the peer was silent for a while, and ends this process.
                time.sleep(SILENCE + 2 * BEAT)
            again = "" if isinstance(error, UsageError) else f"; {_AGAIN}"
            self._fail((str(error) or type(error).__name__) + again)
            raise
        self._close()

    def _fail(self, message: str) -> None:
        with self._reporting:  # another thread may be reporting a lost peer
            self._ending.set()
        line = wire.printable(f"{self.cluster.name(self.index)} failed: {message}")
        for peer in self._peers.values():
            peer.send(_FAILED, line.encode(errors="replace"))
        self._disconnect()

    def _close(self) -> None:
        if not self.chief:
            self._peers[0].send(_BYE)
        for peer in self._peers.values():
            peer.receive(_BYE)
        self._ending.set()
        if self.chief:
            for peer in self._peers.values():
                peer.send(_BYE)
        self._disconnect()

    def _disconnect(self) -> None:
        for peer in self._peers.values():
            peer.close()
        self._peers = {}

    def _lost(self, index: int, line: str) -> None:
        """Reports a lost peer and ends the process; called by the peer's thread."""
        with self._reporting:
            if self._ending.is_set():
                return
            self._ending.set()
        line = line or f"{self.cluster.name(index)} was lost; {_AGAIN}"
        others = [peer for other, peer in self._peers.items() if other != index]
        for peer in others:  # only the chief has other peers
            peer.send(_FAILED, line.encode(errors="replace"))
        if others:
            time.sleep(0.5)  # so that the peers read the message before the connection breaks
        self._leave(line)

    # --- connecting -----------------------------------------------------------------------------

    def _listen(self) -> dict[int, socket.socket]:
        streams: dict[int, socket.socket] = {}
        try:
            self._await_all(streams)
        except BaseException:
            for stream in streams.values():
                stream.close()
            raise
        for stream in streams.values():
            with contextlib.suppress(OSError):  # the reading thread notices a lost connection
                wire.send(stream, _WELCOME, HELLO)
        return streams

    def _await_all(self, streams: dict[int, socket.socket]) -> None:
        """Fills `streams`; a caller with a slow or missing handshake delays no other caller."""
        callers: list[socket.socket] = []
        changing, complete = threading.Lock(), False

        def shake_hands(stream: socket.socket) -> None:
            index, refusal = wire.answer(stream, self.count, self._secret, HELLO)
            with changing:
                callers.remove(stream)
                is_connected = index in streams and not wire.readable(streams[index])
                if not refusal and (complete or is_connected):
                    refusal = f"{self.cluster.name(index)} is already connected."
                if not refusal:
                    if index in streams:
                        streams[index].close()
                    streams[index] = stream
                    return
            with contextlib.suppress(OSError):
                wire.send(stream, refusal.encode(), HELLO)
            stream.close()

        end = _Deadline(lambda: [i for i in range(1, self.count) if i not in streams], self.cluster)
        with self._listen_at_own_port() as listener:
            while True:
                with changing:
                    # Connected workers send nothing yet, so readable means that one has closed.
                    for index in [
                        i for i, connection in streams.items() if wire.readable(connection)
                    ]:
                        streams.pop(index).close()
                    if len(streams) == self.count - 1:
                        complete = True
                        break
                end.check()
                try:
                    stream, _ = listener.accept()
                except TimeoutError:
                    continue
                except OSError:  # the caller closed already, or too many files are open
                    time.sleep(0.1)
                    continue
                with changing:
                    callers.append(stream)
                    if len(callers) > _CALLERS:
                        _shut_down(callers[-_CALLERS - 1])
                threading.Thread(target=shake_hands, args=[stream], daemon=True).start()

    def _call(self) -> socket.socket:
        self._listen_at_own_port().close()
        host, port = _split(self.cluster.workers[0])
        end = _Deadline(lambda: [0], self.cluster)
        while True:
            end.check()
            with contextlib.ExitStack() as stack, contextlib.suppress(OSError, EOFError):
                stream = socket.create_connection((host, port), timeout=1.0)
                stack.callback(stream.close)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                refusal = wire.call(stream, self.index, self.count, self._secret, HELLO)
                while not refusal and not wire.readable(stream, 1.0):
                    end.check()
                if not refusal:
                    response = wire.receive(stream, HELLO, wire.LARGEST_HELLO)
                    if response == _WELCOME:
                        stack.pop_all()
                        return stream
                    refusal = wire.printable(response.decode(errors="replace"))
                raise RunError(f"{self.cluster.name(0)} refuses the connection: {refusal}")
            time.sleep(0.2)

    def _listen_at_own_port(self) -> socket.socket:
        """Returns a listening socket at this worker's address, which must be free.

        TensorFlow's server would share the port with another process that uses it.
        """
        host, port = _split(self.cluster.workers[self.index])
        try:
            if host in ("localhost", "127.0.0.1"):
                listener = socket.create_server(("127.0.0.1", port))
            elif socket.has_dualstack_ipv6():
                listener = socket.create_server(
                    ("", port), family=socket.AF_INET6, dualstack_ipv6=True
                )
            else:
                listener = socket.create_server(("", port))
        except OSError as error:
            raise RunError(
                f"{self.cluster.name(self.index)} cannot listen at its address: {error.strerror}. "
                "Use another port, or end the process that uses this port."
            ) from None
        listener.settimeout(0.2)
        return listener


class _Peer:
    """A connection with a thread that reads from it and a thread that sends heartbeats.

    Args:
      index: index of the worker at the other end.
      connection: the connection to it.
      lost: called with the index and a message (or "") if the worker is lost.
      largest: maximum bytes of a value from the worker.
    """

    def __init__(self, index: int, connection: socket.socket, lost, largest: int):
        self.index = index
        self._connection, self._largest = connection, largest
        self._sender = connection.dup()  # has its own timeouts
        self._lost = lost
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._values: queue.SimpleQueue = queue.SimpleQueue()

    def start(self) -> None:
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def send(self, kind: bytes, message: bytes = b"") -> None:
        """Sends a message, split into parts if it is long."""
        # A process that ends does not wait long for a peer that does not read.
        seconds = HELLO if kind == _FAILED else SILENCE
        size = wire.LARGEST - 1
        pieces = [message[i : i + size] for i in range(0, len(message), size)] or [b""]
        kinds = [_PART] * (len(pieces) - 1) + [kind]
        try:
            for kind, piece in zip(kinds, pieces, strict=True):
                if not self._sending.acquire(timeout=seconds):
                    raise TimeoutError
                try:
                    wire.send(self._sender, kind + piece, seconds)
                finally:
                    self._sending.release()
        except TimeoutError:  # a peer that does not read is lost, even if its heartbeats arrive
            if kind != _FAILED and not self._closed.is_set():
                self._lost(self.index, "")
        except OSError:
            pass  # the reading thread notices a lost peer

    def receive(self, kind: bytes = _VALUE) -> bytes:
        """Waits for the next value; if a peer is lost meanwhile, the process ends."""
        while True:
            received_kind, message = self._values.get()
            if received_kind == kind:
                return message

    def close(self) -> None:
        self._closed.set()
        with contextlib.suppress(OSError):
            self._sender.shutdown(socket.SHUT_WR)  # data from the peer can still be read

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            self.send(_BEAT)
        with self._sending:
            self._sender.close()

    def _read(self) -> None:
        try:
            while wire.readable(self._connection, SILENCE):
                kind, content = self._next()
                if kind == _FAILED:
                    self._lost(self.index, wire.printable(content.decode(errors="replace")))
                elif kind != _BEAT:
                    if self._values.qsize() > _WAITING:
                        raise wire.Malformed("too many values")
                    self._values.put((kind, content))
                if kind == _BYE:  # the peer ends as planned
                    return
            self._lost(self.index, "")
        except (OSError, EOFError):
            self._lost(self.index, "")
        finally:
            self._connection.close()

    def _next(self) -> tuple[bytes, bytes]:
        """Receives a message, or a value that is split into several messages."""
        parts, size = [], 0
        while True:
            message = wire.receive(self._connection, SILENCE)
            kind, content = message[:1], message[1:]
            if kind not in (_PART, _VALUE, _BEAT, _FAILED, _BYE):
                raise wire.Malformed("an unknown kind of message")
            if kind in (_BEAT, _FAILED, _BYE) and not (kind == _BEAT and parts):
                return kind, content
            if kind != _BEAT:
                parts.append(content)
                size += len(content)
            if size > self._largest:
                raise wire.Malformed("too large a value")
            if kind == _VALUE:
                return kind, b"".join(parts)


class _Deadline:
    """Reports once which workers are missing, and raises after `WAIT` seconds."""

    def __init__(self, missing, cluster: Cluster):
        self._missing, self._cluster = missing, cluster
        self._start, self._reported = time.monotonic(), False

    def check(self) -> None:
        elapsed = time.monotonic() - self._start
        names = ", ".join(map(self._cluster.name, self._missing()))
        if elapsed > WAIT:
            raise RunError(f"Timed out after {WAIT:.0f} s waiting for {names}.")
        if elapsed > REPORT_AFTER and not self._reported:
            self._reported = True
            own = self._cluster.workers[self._cluster.index]
            # Not an error: behind NAT the right address is not an address of the machine.
            doubt = (
                ""
                if _is_local_address(own)
                else f"; {own} is not an address of this machine: check the index"
            )
            _LOG.warning(f"waiting for {names}{doubt}")


def _is_collective_error(error: BaseException) -> bool:
    # Compared by name, because this module must not import TensorFlow.
    return any(kind.__name__ == "OpError" for kind in type(error).__mro__) and (
        "Collective" in str(error)
        or type(error).__name__ in ("UnavailableError", "AbortedError", "CancelledError")
    )


def _shut_down(stream: socket.socket) -> None:
    """Closes a connection that another thread reads, which also ends the read."""
    with contextlib.suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _is_local_address(address: str) -> bool:
    """Returns whether `host:port` is an address of this machine."""
    try:
        addresses = socket.getaddrinfo(_split(address)[0], None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, name in addresses:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.bind(name)
            return True
    return False


def _leave(line: str, last=None) -> None:
    # The main thread may hang in a collective operation forever, and only os._exit ends it.
    _LOG.error(f"error: {' '.join(line.split())}")
    try:
        if last:
            last()
    finally:
        os._exit(1)
