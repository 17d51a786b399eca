"""Clusters of workers and their messages; threads simulate processes."""

import json
import os
import socket
import sys
import threading
import time

import pytest

from tests.workers import free_addresses
from trainers.distributed import group as groups
from trainers.distributed.cluster import Cluster, code_fingerprint, read_cluster
from trainers.distributed.group import WorkerGroup
from zoo.errors import RunError, UsageError


def tf_config(kind="worker", index=0, **jobs):
    jobs = jobs or {"worker": ["a:1", "b:2"]}
    return json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})


# --- flags and TF_CONFIG ------------------------------------------------------------------------


def test_flags_and_tf_config_tell_the_same():
    expected = Cluster(("a:1", "b:2"), 1)
    assert read_cluster("a:1, b:2", 1, "") == expected
    assert read_cluster(tf_config=tf_config(index=1)) == expected
    assert read_cluster("a:1,b:2", 1, tf_config(index=1)) == expected
    assert expected.name(1) == "worker 1 (b:2)"


def test_a_chief_is_the_first_worker():
    jobs = {"worker": ["b:2", "c:3"], "chief": ["a:1"]}
    assert read_cluster(tf_config=tf_config("chief", 0, **jobs)).index == 0
    cluster = read_cluster(
        tf_config=tf_config("worker", "1", **jobs)
    )  # Kubeflow writes the index as text
    assert cluster == Cluster(("a:1", "b:2", "c:3"), 2)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("", None, ""), "Strategy multi_worker requires --workers"),
        (("a:1,b:2", None, ""), "--workers and --worker_index must be set together"),
        (("", 1, ""), "--workers and --worker_index must be set together"),
        (("a:1,b:2", 2, ""), "Received: 2 of 2"),
        (("a:1,b:2", -1, ""), "Received: -1 of 2"),
        (("a:1,b", 0, ""), "must be HOST:PORT. Received: 'b'"),
        (("a:1 b:2", 0, ""), "must be HOST:PORT. Received: 'a:1 b:2'"),
        (("a:1,b:²", 0, ""), "must be HOST:PORT. Received: 'b:²'"),
        (("http://a:1,b:2", 0, ""), "must be HOST:PORT. Received: 'http://a:1'"),
        (("a:1,b:70000", 0, ""), "Received: 'b:70000'"),
        (("a:1,a:1", 0, ""), "The workers in --workers must differ"),
        (("a:1,b:2", 0, tf_config(index=1)), "--workers and TF_CONFIG must agree"),
        (("", None, "{"), "TF_CONFIG must be {"),
        (("", None, "[]"), "TF_CONFIG must be {"),
        (("", None, '{"cluster": {"worker": ["a:1"]}}'), "KeyError: 'task'"),
        (("", None, '{"cluster": {"worker": 1}, "task": {"type": "worker", "index": 0}}'), "Type"),
        (("", None, tf_config(index=2)), "Received: 2 of 2 'worker'"),
        (("", None, tf_config(index="x")), "ValueError"),
        (("", None, tf_config("evaluator")), "'worker' and 'chief'. Received: 'evaluator'"),
        (("", None, tf_config(ps=["a:1"], worker=["b:1"])), "'worker' and 'chief'. Received: 'ps'"),
        (
            ("", None, tf_config(chief=["a:1", "b:1"], worker=["c:1"])),
            "must not name more than one chief",
        ),
    ],
)
def test_a_wrong_cluster_is_one_line(arguments, line):
    with pytest.raises(UsageError) as error:
        read_cluster(*arguments)
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def test_the_code_has_one_fingerprint(tmp_path, monkeypatch):
    from trainers.distributed import cluster

    before = code_fingerprint()
    assert before == code_fingerprint()
    for package in cluster._PACKAGES:
        (tmp_path / package).symlink_to(cluster.Path(cluster.__file__).parents[2] / package)
    other = tmp_path / "other"
    other.mkdir()
    (other / "new.py").write_text("a = 1")
    monkeypatch.setattr(
        cluster, "__file__", str(tmp_path / "trainers" / "distributed" / "cluster.py")
    )
    monkeypatch.setattr(cluster, "_PACKAGES", (*cluster._PACKAGES, "other"))
    assert code_fingerprint() != before


def test_the_users_files_are_in_the_fingerprint(tmp_path, monkeypatch):
    """Includes recipe, module and package, independent of their folder."""
    from trainers.config import recipe, user_code

    monkeypatch.setattr(user_code, "user_files", set())
    fingerprints = []
    for folder, rate in (("a", 1), ("b", 1), ("c", 2)):
        place = tmp_path / folder
        (place / "my_package").mkdir(parents=True)
        (place / "my_package" / "__init__.py").write_text("")
        (place / "my_package" / "part.py").write_text(f"rate = {rate}")
        (place / "mine.py").write_text(
            "from trainers.config.recipe import shipped_recipe\n"
            "def get_config(arg=''):\n    return shipped_recipe('cnn_digits', 'debug')\n"
        )
        user_code.user_files.clear()
        recipe.load_recipe(f"{place}/mine.py")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(place)
            user_code.import_user_modules(["my_package"])
        sys.modules.pop("my_package")
        assert {path.name for path in user_code.user_files} == {"mine.py", "__init__.py", "part.py"}
        fingerprints.append(code_fingerprint(user_code.user_files))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert fingerprints[0] != code_fingerprint()


def test_a_library_by_another_packages_name(tmp_path, monkeypatch):
    """TensorFlow may be installed as tensorflow-cpu or tf-nightly."""
    from trainers.distributed import cluster

    (tmp_path / "toy_library.py").write_text("__version__ = '7.1'")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cluster, "_LIBRARIES", ("numpy", "toy_library"))
    assert cluster._version("toy_library") == "7.1"
    assert code_fingerprint()


# --- the link -----------------------------------------------------------------------------------


class Left(Exception):
    """Raised in place of the end of the process."""


class Killed(Exception):
    """Raised in place of SIGKILL."""


def together(count, work, addresses=None):
    """Runs `work(link)` in `count` workers; returns the result or exception of each."""
    addresses = tuple(addresses or free_addresses(count))
    results = [None] * count

    def run(index):
        def leave(line):
            results[index] = Left(line)

        link = WorkerGroup(Cluster(addresses, index), leave)
        try:
            link.connect()
            with link.together():
                value = work(link)
            results[index] = value
        except Killed as error:
            results[index] = error
        except BaseException as error:  # noqa: BLE001
            results[index] = results[index] or error

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 20
    while time.monotonic() < end and any(result is None for result in results):
        time.sleep(0.01)
    return results


@pytest.mark.parametrize("count", [1, 2, 4])
def test_workers_agree(count):
    def work(link):
        link.check_same("thing", "x")
        big = link.share(b"ab" * 10**6 if link.chief else None)
        value = link.share({"a": [1.5, None]} if link.chief else None)
        messages = link.each(f"{link.index}: ä")
        return len(big), value, link.any(link.index == count - 1, False), messages, link.chief

    messages = [f"{index}: ä" for index in range(count)]
    expected = 2 * 10**6, {"a": [1.5, None]}, [True, False], messages
    assert together(count, work) == [(*expected, index == 0) for index in range(count)]


def test_workers_that_differ_all_say_who():
    results = together(
        3, lambda link: link.check_same("recipe", "other" if link.index == 2 else "one")
    )
    for result in results:
        assert isinstance(result, UsageError)
        assert "All workers must have the same recipe. Received: worker 2 (" in str(result)
        assert "differs from worker 0 (" in str(result)


@pytest.mark.parametrize("who", [0, 1, 2])
def test_one_fails_and_the_others_name_it(who):
    def work(link):
        if link.index == who:
            raise RunError("the disk is full")
        link.any(False)
        return link.any(False)

    results = together(3, work)
    assert isinstance(results[who], RunError)
    for index in {0, 1, 2} - {who}:
        assert isinstance(results[index], Left), results
        assert str(results[index]).startswith(f"worker {who} (")
        assert str(results[index]).endswith(
            "failed: the disk is full; run the same command on all workers to resume from the last "
            "checkpoint"
        )


@pytest.mark.parametrize("who", [0, 1])
def test_a_broken_connection_names_the_worker(who):
    def work(link):
        if link.index == who:  # as the kernel does for a killed process
            for peer in link._peers.values():
                with socket.socket(fileno=os.dup(peer._connection.fileno())) as one:
                    link._ending.set()
                    one.shutdown(socket.SHUT_RDWR)
            raise Killed
        return link.any(False)

    results = together(3, work)
    for index in {0, 1, 2} - {who}:
        assert isinstance(results[index], Left), results
        assert str(results[index]).startswith(f"worker {who} (")
        assert "was lost" in str(results[index])


@pytest.mark.parametrize("who", [0, 1])
def test_silence_names_the_worker(who, monkeypatch):
    """Simulates a machine without power or network: its connections are not closed."""
    monkeypatch.setattr(groups, "BEAT", 0.1)
    monkeypatch.setattr(groups, "SILENCE", 1.0)

    def work(link):
        if link.index == who:
            link._ending.set()
            for peer in link._peers.values():
                peer._closed.set()  # stops the heartbeats
            time.sleep(4)
            raise Killed
        return link.any(False)

    results = together(3, work)
    for index in {0, 1, 2} - {who}:
        assert isinstance(results[index], Left), results
        assert str(results[index]).startswith(f"worker {who} (")


def test_work_is_no_silence(monkeypatch):
    """A worker that loads data longer than `SILENCE` sends heartbeats meanwhile."""
    monkeypatch.setattr(groups, "BEAT", 0.1)
    monkeypatch.setattr(groups, "SILENCE", 1.0)

    def work(link):
        time.sleep(2.5)
        return link.any(link.index == 1)

    assert together(2, work) == [[True], [True]]


def test_an_address_in_use():
    addresses = free_addresses(2)
    host, _, port = addresses[1].rpartition(":")
    message = r"^worker 1 .* cannot listen at its address: Addr"
    with socket.create_server((host, int(port))), pytest.raises(RunError, match=message):
        WorkerGroup(Cluster(tuple(addresses), 1)).connect()


def test_waiting_ends(monkeypatch):
    monkeypatch.setattr(groups, "WAIT", 1.0)
    addresses = tuple(free_addresses(2))
    for index in (0, 1):
        with pytest.raises(RunError, match=f"waiting for worker {1 - index} "):
            WorkerGroup(Cluster(addresses, index)).connect()


@pytest.mark.parametrize(("host", "doubt"), [("localhost", False), ("192.0.2.1", True)])
def test_a_machine_that_may_have_anothers_index_is_told(host, doubt, monkeypatch, capsys):
    """Two machines that are started with the same index wait for each other."""
    monkeypatch.setattr(groups, "REPORT_AFTER", 0.0)
    monkeypatch.setattr(groups, "WAIT", 1.0)
    port = free_addresses(1)[0].rpartition(":")[2]
    with pytest.raises(RunError, match="waiting for worker 1 "):
        WorkerGroup(Cluster((f"{host}:{port}", "192.0.2.2:1"), 0)).connect()
    hint = f"; {host}:{port} is not an address of this machine: check the index" if doubt else ""
    assert f"zoo: waiting for worker 1 (192.0.2.2:1){hint}\n" in capsys.readouterr().err


def test_a_stranger_at_the_chiefs_address_holds_nobody(monkeypatch):
    """The stranger never completes its answer: the worker retries until its time limit."""
    monkeypatch.setattr(groups, "HELLO", 0.2)
    monkeypatch.setattr(groups, "WAIT", 1.0)
    addresses = tuple(free_addresses(2))
    answered = []

    def stranger(listener):
        while True:
            try:
                stream, _ = listener.accept()
            except OSError:
                return
            stream.sendall(b"\0\0")
            answered.append(stream)

    with socket.create_server(("127.0.0.1", int(addresses[0].rpartition(":")[2]))) as listener:
        threading.Thread(target=stranger, args=[listener], daemon=True).start()
        with pytest.raises(RunError, match="waiting for worker 0 "):
            WorkerGroup(Cluster(addresses, 1)).connect()
        listener.shutdown(socket.SHUT_RDWR)  # ends the wait of the thread
    for stream in answered:
        stream.close()


def test_strangers_and_doubles_are_turned_away(monkeypatch):
    monkeypatch.setattr(groups, "HELLO", 1.0)
    addresses = tuple(free_addresses(3))
    address = ("127.0.0.1", int(addresses[0].rpartition(":")[2]))
    links_made = [WorkerGroup(Cluster(addresses, index), lambda line: None) for index in range(3)]
    threads = [threading.Thread(target=link.connect, daemon=True) for link in links_made]
    threads[0].start()

    def call(message):
        """Sends bytes to the chief; returns the connection."""
        for _ in range(100):
            try:
                stream = socket.create_connection(address)
                break
            except OSError:
                time.sleep(0.05)
        stream.settimeout(5)
        stream.sendall(message)
        return stream

    with call(b"GET / HTTP/1.1\r\n\r\n") as browser:
        assert b"is not valid" in browser.recv(1000)
    for content in (b'{"zoo": 1, "worker": 1e999, "count": 3}', b"[" * 1000, b"\xff"):
        with call(len(content).to_bytes(4, "big") + content) as stranger:
            assert b"is not valid" in stranger.recv(1000)
    with call(b"\0\0") as silent:  # half of a message's length, and then nothing
        assert b"no message arrived" in silent.recv(1000)
    with pytest.raises(RunError, match="the run has 3 workers, not 4 .worker 3."):
        WorkerGroup(Cluster((*addresses, *free_addresses(1)), 3)).connect()
    hello = json.dumps({"zoo": 1, "worker": 1, "count": 3}).encode()
    with call(len(hello).to_bytes(4, "big") + hello):
        time.sleep(0.2)
        with pytest.raises(
            RunError, match=r"refuses the connection: worker 1 \(.*\) is already connected"
        ):
            WorkerGroup(Cluster(addresses, 1)).connect()
    threads[2].start()  # all workers have connected, but the first worker 1 has exited
    time.sleep(1)
    threads[1].start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    for link in links_made:
        link._fail("the test is over")


def test_the_last_checkpoint_comes_before_the_end(monkeypatch, capsys):
    done = []
    monkeypatch.setattr(groups.os, "_exit", lambda status: done.append(status))

    def last():
        done.append("checkpoint")
        raise OSError("full")

    with pytest.raises(
        OSError, match="full"
    ):  # `os._exit`, which ends a real process, is replaced here
        groups._leave("worker 1 is lost", last)
    assert done == ["checkpoint", 1]
    assert "zoo: error: worker 1 is lost" in capsys.readouterr().err
