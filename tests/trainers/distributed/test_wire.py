"""The port of a worker group: unknown, malformed and slow connections."""

import contextlib
import json
import random
import socket
import threading
import time

import pytest

from tests.trainers.distributed.test_cluster import Left, together
from tests.workers import free_addresses
from trainers.distributed import group as groups
from trainers.distributed import wire
from trainers.distributed.cluster import Cluster
from trainers.distributed.group import WorkerGroup
from zoo.errors import RunError, UsageError


def reach(address: str) -> socket.socket:
    """Connects to an address, which may not be listening yet."""
    host, _, port = address.rpartition(":")
    for _ in range(200):
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"nobody listens at {address}")


def framed(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + content


class Run:
    """Links of a chief and workers; the test starts their threads."""

    def __init__(self, count: int):
        self.addresses = tuple(free_addresses(count))
        self.groups = [
            WorkerGroup(Cluster(self.addresses, i), lambda line: None) for i in range(count)
        ]
        self.threads = [threading.Thread(target=one.connect, daemon=True) for one in self.groups]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for link in self.groups:
            link._fail("the test is over")

    def connected(self, seconds: float) -> bool:
        """Starts the remaining threads; returns whether all connect within `seconds`."""
        for thread in self.threads:
            if thread.ident is None:
                thread.start()
        end = time.monotonic() + seconds
        for thread in self.threads:
            thread.join(max(0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self.threads)


# --- connecting -----------------------------------------------------------------------------------


def test_callers_that_say_nothing_delay_nobody(monkeypatch):
    """Each caller may take `HELLO` seconds; the longest-waiting callers are dropped for others."""
    monkeypatch.setattr(groups, "HELLO", 30.0)
    with Run(3) as run:
        run.threads[0].start()
        strangers = [reach(run.addresses[0]) for _ in range(groups._CALLERS + 20)]
        for first in strangers[:20]:
            first.settimeout(10)
            assert first.recv(100) == b""
        assert not any(wire.readable(other) for other in strangers[21:])
        assert run.connected(20)
        for stranger in strangers:
            stranger.close()


def test_a_caller_that_says_a_byte_now_and_then_is_not_waited_for():
    ours, theirs = socket.socketpair()
    stop = threading.Event()

    def send_bytes_slowly():
        while not stop.wait(0.05):
            theirs.sendall(b"\0")

    threading.Thread(target=send_bytes_slowly, daemon=True).start()
    with ours, theirs:
        theirs.sendall(framed(b"x" * 500)[:10])
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            wire.receive(ours, 0.4)
        assert time.monotonic() - start < 2
        stop.set()
        time.sleep(0.1)


@pytest.mark.parametrize("largest", [wire.LARGEST_HELLO, wire.LARGEST])
def test_a_message_that_declares_too_much_is_refused_before_it_comes(largest):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall((largest + 1).to_bytes(4, "big"))
        with pytest.raises(wire.Malformed, match=f"at most {largest} are expected"):
            wire.receive(ours, 1, largest)


def test_a_hello_that_is_none_is_answered_with_the_reason():
    hellos = [
        {}, [], None, 1, {"zoo": 1}, {"zoo": 2, "worker": 1, "count": 2},
        {"zoo": 1, "worker": True, "count": 2}, {"zoo": 1, "worker": 1.0, "count": 2},
        {"zoo": 1, "worker": "1", "count": "2"}, {"zoo": 1, "worker": 0, "count": 2},
        {"zoo": 1, "worker": -1, "count": 2}, {"zoo": 1, "worker": 10**300, "count": 10**300},
        {"zoo": 1, "worker": 1, "count": 2, "nonce": "\ud800"},
    ]  # fmt: skip
    with Run(2) as run:
        run.threads[0].start()
        for hello in hellos:
            with reach(run.addresses[0]) as stranger:
                stranger.sendall(framed(json.dumps(hello).encode()))
                assert wire.receive(stranger, 5).endswith(b"."), hello
        assert run.connected(10)


def test_noise_at_the_port_changes_nothing():
    numbers = random.Random(0)
    beginnings = [b"", b"GET / HTTP/1.0\r\n", b"\x16\x03\x01", b"\xff" * 4, b"\0\0\0\x10", b"\0\0"]
    with Run(2) as run:
        run.threads[0].start()
        for turn in range(120):
            with reach(run.addresses[0]) as stranger:
                noise = beginnings[turn % len(beginnings)] + numbers.randbytes(turn % 40)
                if turn % 3 == 0:
                    noise = framed(noise)
                stranger.sendall(noise)
        assert run.threads[0].is_alive()
        assert run.connected(10)
        assert list(run.groups[0]._peers) == [1]


def test_a_worker_that_ends_at_once_kills_nobody():
    """The worker sends its hello and exits before the chief welcomes all workers."""
    with Run(2) as run:
        run.threads[0].start()
        for _ in range(20):
            with reach(run.addresses[0]) as stranger:
                stranger.sendall(framed(b'{"zoo": 1, "worker": 1, "count": 2}'))
        run.threads[0].join(0.5)
        assert run.groups[0]._peers or run.connected(10)


def test_a_worker_that_is_gone_before_the_others_come_is_waited_for_again():
    with Run(3) as run:
        run.threads[0].start()
        with reach(run.addresses[0]) as connection:
            connection.sendall(framed(b'{"zoo": 1, "worker": 1, "count": 3}'))
            time.sleep(0.3)
        run.threads[2].start()
        run.threads[0].join(1.0)
        assert run.threads[0].is_alive()
        assert run.connected(10)


# --- the secret -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_workers_with_one_secret_agree(count, monkeypatch):
    monkeypatch.setenv(wire.SECRET, "open sesame\n")  # with a newline, as read from a file
    assert wire.secret() == b"open sesame"
    assert together(count, lambda link: link.share("x")) == ["x"] * count


@pytest.mark.parametrize(
    ("chief", "worker", "line"),
    [
        (
            "one",
            "other",
            "refuses the connection: the chief has another secret: set the same ZOO_CLUSTER",
        ),
        ("one", "", "refuses the connection: only one side has a secret: set ZOO_CLUSTER"),
        ("", "one", "refuses the connection: only one side has a secret: set ZOO_CLUSTER"),
    ],
)
def test_a_worker_with_another_secret_is_refused(chief, worker, line, monkeypatch):
    monkeypatch.setenv(wire.SECRET, chief)
    with Run(2) as run:
        run.threads[0].start()
        monkeypatch.setenv(wire.SECRET, worker)
        with pytest.raises(RunError, match=line):
            WorkerGroup(Cluster(run.addresses, 1)).connect()
        assert run.threads[0].is_alive()
        assert run.connected(10)  # the chief still waits for a worker with the secret


def test_a_caller_without_the_secret_is_no_worker(monkeypatch):
    """The caller replays a worker's message, or returns the chief's own proof."""
    monkeypatch.setenv(wire.SECRET, "one")
    hello = {"zoo": 1, "worker": 1, "count": 2, "nonce": "00"}
    with Run(2) as run:
        run.threads[0].start()
        for last in (b"", b"\xff", None):
            with reach(run.addresses[0]) as stranger:
                stranger.sendall(framed(json.dumps(hello).encode()))
                proof = json.loads(wire.receive(stranger, 5))["proof"]
                stranger.sendall(framed(proof.encode() if last is None else last))
                assert b"another secret" in wire.receive(stranger, 5)
        assert run.connected(10)


def test_a_chief_without_the_secret_is_no_chief(monkeypatch):
    monkeypatch.setenv(wire.SECRET, "one")
    address, other = free_addresses(2)
    host, _, port = address.rpartition(":")
    message = json.dumps({"nonce": "00", "proof": "0" * 64}).encode()

    def chief(listener):
        stream, _ = listener.accept()
        with stream:
            wire.receive(stream, 5)
            stream.sendall(framed(message))
            assert stream.recv(100) == b""  # the worker sends no proof

    with socket.create_server((host, int(port))) as listener:
        threading.Thread(target=chief, args=[listener], daemon=True).start()
        with pytest.raises(
            RunError, match="worker 0 .* refuses the connection: the chief has another secret"
        ):
            WorkerGroup(Cluster((address, other), 1)).connect()


class Watched:
    """A worker's connection that records sent messages and may change them."""

    def __init__(self, stream, change=lambda content: content):
        self._stream, self._change, self.sent = stream, change, []

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def sendall(self, content):
        self.sent.append(self._change(content))
        self._stream.sendall(self.sent[-1])


def handshake(worker, count=3):
    """Runs `worker` against a chief with a secret; returns the results of both."""
    ours, theirs = socket.socketpair()
    answers = []
    chief = threading.Thread(
        target=lambda: answers.append(wire.answer(theirs, count, b"one", 5)), daemon=True
    )
    with ours, theirs:
        chief.start()
        reply = worker(ours)
        ours.shutdown(socket.SHUT_WR)
        chief.join(10)
        return reply, answers[0]


def test_a_handshake_that_was_overheard_proves_nothing():
    streams = []

    def worker(stream):
        streams.append(Watched(stream))
        return wire.call(streams[0], 1, 3, b"one", 5)

    assert handshake(worker) == ("", (1, ""))
    hello, proof = streams[0].sent

    def again(stream):
        stream.sendall(hello)
        wire.receive(stream, 5)
        stream.sendall(proof)

    _, (index, reason) = handshake(again)
    assert index is None
    assert reason.startswith("the worker has another secret")


def test_a_hello_that_was_changed_on_its_way_is_noticed():
    def changed(content):
        return content.replace(b'"worker": 1', b'"worker": 2')

    reply, (index, _) = handshake(
        lambda stream: wire.call(Watched(stream, changed), 1, 3, b"one", 5)
    )
    assert reply.startswith("the chief has another secret")
    assert index is None


def with_a_false_chief(says: list[bytes], work=lambda link: None):
    """Runs `work` on a worker whose chief answers the hello with these messages."""
    address, other = free_addresses(2)
    host, _, port = address.rpartition(":")

    def chief(listener):
        stream, _ = listener.accept()
        with contextlib.suppress(OSError), stream:  # the worker may close the connection first
            wire.receive(stream, 5)
            for message in says:
                stream.sendall(framed(message))
            while stream.recv(2**16):
                pass

    with socket.create_server((host, int(port))) as listener:
        threading.Thread(target=chief, args=[listener], daemon=True).start()
        link = WorkerGroup(Cluster((address, other), 1), lambda line: None)
        try:
            link.connect()
            return work(link)
        finally:
            link._fail("the test is over")


def test_a_refusal_is_printable():
    """Python does not count characters that change the text direction as control characters."""
    with pytest.raises(RunError) as error:
        with_a_false_chief(["go \u202eaway\x1b[2J".encode()])
    assert str(error.value).endswith(" refuses the connection: go  away [2J")


@pytest.mark.parametrize("value", [b"j{", b"j\xff", b"j" + b"[" * 100_000, b"j"])
def test_a_value_of_the_chief_that_is_none_is_one_line(value):
    with pytest.raises(RunError, match="worker 0 .* sent an invalid message"):
        with_a_false_chief([b"welcome", b"v" + value], lambda link: link.share())


# --- after the welcome ----------------------------------------------------------------------------


def run_with_false_worker(
    work, messages: list[bytes], monkeypatch, silence=60.0, sends_heartbeats=False
):
    """Runs `work` on a chief whose only worker sends these messages.

    Args:
      work: function of the chief's link.
      messages: bytes that the worker sends.
      monkeypatch: pytest's.
      silence: seconds after which a silent worker is lost; 60 is longer than any test.
      sends_heartbeats: whether the worker sends heartbeats after the messages.

    Returns:
      Result or exception of `work`, or `Left` with the last message of the process.
    """
    monkeypatch.setattr(groups, "SILENCE", silence)
    monkeypatch.setattr(groups, "BEAT", 0.1)
    addresses = tuple(free_addresses(2))
    outcomes = []
    link = WorkerGroup(Cluster(addresses, 0), lambda line: outcomes.append(Left(line)))

    def run():
        try:
            link.connect()
            with link.together():
                outcomes.append(work(link))
        except Exception as error:  # noqa: BLE001
            outcomes.append(error)

    threading.Thread(target=run, daemon=True).start()
    with reach(addresses[0]) as connection:
        connection.sendall(framed(b'{"zoo": 1, "worker": 1, "count": 2}'))
        assert wire.receive(connection, 5) == b"welcome"
        with contextlib.suppress(
            OSError
        ):  # the chief may close the connection after the first message
            for message in messages:
                connection.sendall(message)
        end = time.monotonic() + 10
        while not outcomes and time.monotonic() < end:
            if sends_heartbeats:
                with contextlib.suppress(OSError):
                    connection.sendall(framed(b"b"))
            time.sleep(0.01)
    assert outcomes, "the chief hangs"
    return outcomes[0]


@pytest.mark.parametrize("message", [b"\0\0\0\x50v", b"\0\0"], ids=["half", "less"])
def test_a_worker_that_stops_within_a_message_ends_the_run_with_its_name(message, monkeypatch):
    outcome = run_with_false_worker(
        lambda link: link.any(False), [message], monkeypatch, silence=1.0
    )
    assert isinstance(outcome, Left), outcome
    assert str(outcome).startswith("worker 1 (")


@pytest.mark.parametrize(
    "message",
    [
        b"\xff\xff\xff\xff", (2**31 - 1).to_bytes(4, "big") + b"v",
        framed(b""), framed(b"x"), framed(b"p" + b"x" * 2**17), framed(b"v" * 2**17),
        framed(b"pxx") * 40_000,
    ],
    ids=["4 GB", "2 GB", "empty", "kind", "part", "value", "parts"],
)  # fmt: skip
def test_a_worker_that_is_malformed_ends_the_run_with_its_name(message, monkeypatch):
    outcome = run_with_false_worker(lambda link: link.any(False), [message], monkeypatch)
    assert isinstance(outcome, Left), outcome
    assert str(outcome).startswith("worker 1 (")


def test_values_that_nobody_asks_for_are_bounded(monkeypatch):
    def work(link):
        time.sleep(5)

    outcome = run_with_false_worker(
        work, [framed(b"v" + b"x" * 1000) * (groups._WAITING + 10)], monkeypatch
    )
    assert isinstance(outcome, Left), outcome


@pytest.mark.parametrize(
    ("work", "message", "kind", "line"),
    [
        (lambda link: link.any(False), b"v\0\0", RunError, "worker 1 .* an invalid message"),
        (lambda link: link.check_same("thing", "x"), b"v\xff", UsageError, "have the same thing"),
    ],
)
def test_a_value_of_another_kind_is_one_line(work, message, kind, line, monkeypatch):
    with pytest.raises(kind, match=line):
        raise run_with_false_worker(work, [framed(message), framed(b"e")], monkeypatch)


def test_what_a_peer_says_holds_no_control_characters(monkeypatch):
    outcome = run_with_false_worker(
        lambda link: link.each("a"), [framed(b"v\x1b[2Jb\xff\r\n")], monkeypatch
    )
    assert outcome == ["a", " [2Jb\ufffd  "]
    outcome = run_with_false_worker(
        lambda link: link.any(False), [framed(b"f\x1b]0;x\x07\n" * 9)], monkeypatch
    )
    assert str(outcome).isprintable()
    assert "]0;x" in str(outcome)


def test_a_peer_that_takes_nothing_is_lost(monkeypatch):
    """The worker sends heartbeats, but does not read the checkpoint that the chief sends."""
    outcome = run_with_false_worker(
        lambda link: link.share(b"x" * 2**26), [], monkeypatch, silence=1.0, sends_heartbeats=True
    )
    assert isinstance(outcome, Left), outcome
