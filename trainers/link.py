"""What workers tell each other besides gradients: that they are the same, that they are alive.

Each worker holds one TCP connection to the chief, made at the chief's own address before
TensorFlow's server takes the port over; the connections outlive that. A collective operation hangs
or fails with some internal message when a peer dies; here the kernel closes the dead process's
connection, or its machine falls silent, and every survivor says who it was and ends.

Messages are bytes and JSON; nothing that is received is ever executed. Loads no TensorFlow.
"""

import contextlib
import functools
import json
import os
import queue
import socket
import sys
import threading
import time
from multiprocessing.connection import Connection

from trainers.cluster import Cluster
from zoo.errors import RunError, UsageError

WAIT = 900.0  # seconds in which all workers must have come
SAY = 5.0  # and after how many it is said for whom a worker waits
HELLO = 5.0  # seconds in which who calls, or is called, has said all of who it is
BEAT, SILENCE = 3.0, 30.0  # a sign of life each, and after how long without one a worker is lost
_AGAIN = "run the same command on all workers to go on from the last checkpoint"
_VALUE, _BEAT, _FAILED, _BYE = b"v", b"b", b"f", b"e"
_WELCOME = b"welcome"


class Alone:
    """A run of one process: it is the chief, and agrees with itself."""

    chief, index, count = True, 0, 1

    def connect(self) -> None:
        """Waits for the others."""

    def same(self, what: str, fingerprint: str) -> None:
        """Raises `UsageError` on all workers where they do not all have this fingerprint."""

    def share(self, value=None):
        """Returns the chief's value (JSON or bytes) on every worker."""
        return value

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any worker."""
        return list(flags)

    def each(self, text: str) -> list[str]:
        """Returns what every worker says, in their order."""
        return [text]

    @contextlib.contextmanager
    def together(self):
        """Ends with the others: each waits for all, or all end where one fails."""
        yield


class Link(Alone):
    """The connections of one worker, from `connect` to the end of `together`.

    All workers call `same`, `share`, `any` and `each` in the same order.

    Args:
      cluster: all workers, and which of them this is.
      leave: called with a line where another worker is lost; ends the process.
      last: called by the usual `leave` before it does.
    """

    def __init__(self, cluster: Cluster, leave=None, last=None):
        self.cluster = cluster
        self.index, self.count = cluster.index, len(cluster.workers)
        self.chief = self.index == 0
        self._leave = leave or functools.partial(_leave, last=last)
        self._peers: dict[int, _Peer] = {}
        self._ending = threading.Event()
        self._said = threading.Lock()

    def connect(self) -> None:
        """Waits until all workers are there.

        Raises:
          RunError: where this worker's address is in use or not its own, or others do not come.
        """
        connections = self._listen() if self.chief else {0: self._call()}
        for index, connection in connections.items():
            self._peers[index] = _Peer(index, connection, self._lost)
        for peer in self._peers.values():  # now that all are known to whom a loss is told
            peer.start()

    # --- agreeing -------------------------------------------------------------------------------

    def same(self, what: str, fingerprint: str) -> None:
        others = self._gather(fingerprint.encode())
        differ = [i for i, other in others.items() if other.decode() != fingerprint]
        line = ""
        if differ:
            line = (
                f"All workers have the same {what}. Received: another on "
                f"{', '.join(map(self.cluster.name, differ))} than on {self.cluster.name(0)}."
            )
        line = self.share(line)
        if line:
            error = UsageError(line)
            error.ends_all = True
            raise error

    def share(self, value=None):
        if not self.chief:
            message = self._peers[0].receive()
            return message[1:] if message[:1] == b"b" else json.loads(message[1:])
        message = b"b" + value if isinstance(value, bytes) else b"j" + json.dumps(value).encode()
        for peer in self._peers.values():
            peer.send(_VALUE, message)
        return value

    def any(self, *flags: bool) -> list[bool]:
        own = bytes(flags)
        rows = [own, *self._gather(own).values()]
        return [
            bool(flag) for flag in self.share([max(column) for column in zip(*rows, strict=True)])
        ]

    def each(self, text: str) -> list[str]:
        others = self._gather(text.encode())
        return self.share([text, *(other.decode() for other in others.values())])

    def _gather(self, message: bytes) -> dict[int, bytes]:
        """On the chief the others' messages; elsewhere nothing, for this worker's is sent."""
        if self.chief:
            return {index: peer.receive() for index, peer in sorted(self._peers.items())}
        self._peers[0].send(_VALUE, message)
        return {}

    # --- ending ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except BaseException as error:
            if getattr(error, "ends_all", False):
                self._close()
                raise
            if _of_a_collective(error):
                # Most likely a peer has died, which the thread that reads it sees at once, or
                # where it fell silent after a while. It ends this process with its name.
                time.sleep(SILENCE + 2 * BEAT)
            again = "" if isinstance(error, UsageError) else f"; {_AGAIN}"
            self._fail((str(error) or type(error).__name__) + again)
            raise
        self._close()

    def _fail(self, message: str) -> None:
        with self._said:  # a thread that has a line to say ends the process with it
            self._ending.set()
        line = f"{self.cluster.name(self.index)} failed: {message}"
        for peer in self._peers.values():
            peer.send(_FAILED, line.encode())
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
        """Called by a peer's thread."""
        with self._said:
            if self._ending.is_set():
                return
            self._ending.set()
        line = line or f"{self.cluster.name(index)} is gone; {_AGAIN}"
        others = [peer for other, peer in self._peers.items() if other != index]
        for peer in others:  # the chief alone has others
            peer.send(_FAILED, line.encode())
        if others:
            time.sleep(0.5)  # for the line to be read before the connection breaks
        self._leave(line)

    # --- coming together ------------------------------------------------------------------------

    def _listen(self) -> dict[int, Connection]:
        found: dict[int, Connection] = {}
        end = _Deadline(lambda: [i for i in range(1, self.count) if i not in found], self.cluster)
        with self._own_port() as listener:
            while True:
                for index in [i for i, one in found.items() if one.poll()]:
                    del found[index]  # nothing was asked of it: what is there to read is its end
                if len(found) == self.count - 1:
                    break
                end.check()
                try:
                    stream, _ = listener.accept()
                except TimeoutError:
                    continue
                connection = Connection(stream.detach())
                index, refusal = _hello(connection, self.count)
                if index in found and not found[index].poll():
                    refusal = f"{self.cluster.name(index)} is there already."
                if refusal:
                    with contextlib.suppress(OSError):
                        connection.send_bytes(refusal.encode())
                    connection.close()
                else:
                    found[index] = connection
        for connection in found.values():
            connection.send_bytes(_WELCOME)
        return found

    def _call(self) -> Connection:
        self._own_port().close()
        host, port = _split(self.cluster.workers[0])
        end = _Deadline(lambda: [0], self.cluster)
        hello = {"zoo": 1, "worker": self.index, "count": self.count}
        while True:
            end.check()
            with contextlib.suppress(OSError, EOFError):
                stream = socket.create_connection((host, port), timeout=1.0)
                stream.settimeout(None)
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection = Connection(stream.detach())
                connection.send_bytes(json.dumps(hello).encode())
                while not connection.poll(1.0):
                    end.check()
                answer = _first_message(connection)
                if answer == _WELCOME:
                    return connection
                raise RunError(f"{self.cluster.name(0)} refuses: {answer.decode(errors='replace')}")
            time.sleep(0.2)

    def _own_port(self) -> socket.socket:
        """A listening socket at this worker's address, which nobody else may have.

        TensorFlow's server itself would share the port with whoever has it.
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
                "Give it another port, or end what has this one."
            ) from None
        listener.settimeout(1.0)
        return listener


class _Peer:
    """A connection, a thread that reads it, and one that sends signs of life."""

    def __init__(self, index: int, connection: Connection, lost):
        self.index = index
        self._connection = connection
        self._lost = lost
        self._sending = threading.Lock()
        self._closed = threading.Event()
        self._values: queue.SimpleQueue = queue.SimpleQueue()

    def start(self) -> None:
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    def send(self, kind: bytes, message: bytes = b"") -> None:
        # A peer that is gone is noticed by the thread that reads.
        with contextlib.suppress(OSError), self._sending:
            self._connection.send_bytes(kind + message)

    def receive(self, kind: bytes = _VALUE) -> bytes:
        """Waits for the next value; a loss meanwhile ends the process."""
        while True:
            got, message = self._values.get()
            if got == kind:
                return message

    def close(self) -> None:
        self._closed.set()
        with (
            contextlib.suppress(OSError),
            socket.socket(fileno=os.dup(self._connection.fileno())) as stream,
        ):
            stream.shutdown(socket.SHUT_WR)  # what the peer has sent is still read

    def _beat(self) -> None:
        while not self._closed.wait(BEAT):
            self.send(_BEAT)

    def _read(self) -> None:
        try:
            while self._connection.poll(SILENCE):
                message = self._connection.recv_bytes()
                kind, content = message[:1], message[1:]
                if kind == _FAILED:
                    self._lost(self.index, content.decode(errors="replace"))
                elif kind != _BEAT:
                    self._values.put((kind, content))
                if kind == _BYE:  # its end is none to talk about
                    return
            self._lost(self.index, "")
        except (OSError, EOFError):
            self._lost(self.index, "")


class _Deadline:
    """Says once for whom a worker waits, and gives up in the end."""

    def __init__(self, missing, cluster: Cluster):
        self._missing, self._cluster = missing, cluster
        self._start, self._said = time.monotonic(), False

    def check(self) -> None:
        passed = time.monotonic() - self._start
        names = ", ".join(map(self._cluster.name, self._missing()))
        if passed > WAIT:
            raise RunError(f"Gave up after {WAIT:.0f} s of waiting for {names}.")
        if passed > SAY and not self._said:
            self._said = True
            own = self._cluster.workers[self._cluster.index]
            # No error: behind NAT an address that is right is none of the machine's own.
            doubt = "" if _here(own) else f"; {own} is not this machine's: is the index right?"
            print(f"zoo: waiting for {names}{doubt}", file=sys.stderr, flush=True)


def _hello(connection: Connection, count: int) -> tuple[int | None, str]:
    """Returns which worker calls, and why it is not let in: a port hears from strangers too."""
    try:
        message = json.loads(_first_message(connection))
        if message["zoo"] != 1:
            return None, "another version of the zoo."
        index, of = int(message["worker"]), int(message["count"])
    except TimeoutError:
        return None, "nothing was said."
    except (OSError, EOFError, ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None, "not understood."
    if of != count or not 0 < index < count:
        return None, f"worker {index} of {of} called, this run has {count} workers."
    return index, ""


def _first_message(connection: Connection) -> bytes:
    """Receives what `Connection.send_bytes` sent, within `HELLO` seconds and 1000 bytes.

    Connection itself waits without end for the rest of a message that has begun.
    """
    until = time.monotonic() + HELLO

    def read(count: int) -> bytes:
        found = b""
        while len(found) < count:
            if not connection.poll(max(0.0, until - time.monotonic())):
                raise TimeoutError
            piece = os.read(connection.fileno(), count - len(found))
            if not piece:
                raise EOFError
            found += piece
        return found

    size = int.from_bytes(read(4), "big")
    if size > 1000:
        raise OSError("too long")
    return read(size)


def _of_a_collective(error: BaseException) -> bool:
    # TensorFlow's own classes cannot be named here without importing TensorFlow.
    return any(kind.__name__ == "OpError" for kind in type(error).__mro__) and (
        "Collective" in str(error)
        or type(error).__name__ in ("UnavailableError", "AbortedError", "CancelledError")
    )


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _here(address: str) -> bool:
    """Whether `host:port` is an address of this machine."""
    try:
        found = socket.getaddrinfo(_split(address)[0], None, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, name in found:
        with contextlib.suppress(OSError), socket.socket(family, kind, protocol) as one:
            one.bind(name)
            return True
    return False


def _leave(line: str, last=None) -> None:
    # The main thread may hang in a collective operation for ever; nothing but this ends it.
    print(f"zoo: error: {' '.join(line.split())}", file=sys.stderr, flush=True)
    try:
        if last:
            last()
    finally:
        os._exit(1)
