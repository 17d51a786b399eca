"""Downloads from a server on 127.0.0.1, valid and invalid."""

import hashlib
import http.server
import os
import socket
import threading

import pytest

from trainers.cli import fetch as fetch_cli
from trainers.cli.common import run
from zoo.data import datasets, fetch
from zoo.data.fetch import FetchFile
from zoo.errors import RunError, UsageError
from zoo.storage.paths import data_dir

BODY = bytes(range(256)) * 20_000  # 5 MB: several chunks


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path == "/missing":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/endless":
            self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        if self.path == "/slow":
            self.server.released.wait(10)
        elif self.path == "/truncated":
            self.wfile.write(BODY[: len(BODY) // 2])
        elif self.path == "/flipped":
            self.wfile.write(BODY[:-1] + b"x")
        elif self.path == "/endless":
            self._write_until_hung_up()
        else:
            self.wfile.write(BODY)

    def _write_until_hung_up(self):
        for _ in range(100):
            try:
                self.wfile.write(BODY)
                self.server.bytes_sent += len(BODY)
            except OSError:
                return

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    httpd.requests, httpd.bytes_sent, httpd.released = [], 0, threading.Event()
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.released.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture
def served(server, monkeypatch, tmp_path):
    """Returns a function that registers a dataset of one file at the given path."""
    monkeypatch.setattr(datasets, "_DATASETS", dict(datasets._DATASETS))
    monkeypatch.setenv("ZOO_DATA_DIR", str(tmp_path))

    def register(path, name="toy", url=None, **changes):
        known = {"size": len(BODY), "sha256": hashlib.sha256(BODY).hexdigest()} | changes
        url = url or f"http://127.0.0.1:{server.server_port}{path}"
        datasets.register_dataset(name, None, files=[FetchFile(url, "toy.bin", **known)])

    return register


def _everything_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_good_file_is_put_in_place_and_not_fetched_again(served, server, tmp_path):
    served("/good")
    lines = []
    folder = fetch.fetch("toy", log=lines.append)
    assert folder == tmp_path / "toy"
    assert _everything_in(tmp_path) == ["toy", "toy/toy.bin"]
    assert (folder / "toy.bin").read_bytes() == BODY
    assert (folder / "toy.bin").stat().st_mode & 0o777 == 0o644
    fetch.fetch("toy", log=lines.append)
    assert server.requests == ["/good"]
    assert [line.rsplit(", ", 1)[1] for line in lines] == ["downloaded", "already present"]


@pytest.mark.parametrize("there", [BODY[:-1], BODY[:-1] + b"x"], ids=["size", "hash"])
def test_a_wrong_file_is_replaced(served, tmp_path, there):
    served("/good")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.bin").write_bytes(there)
    fetch.fetch("toy", log=str)
    assert (tmp_path / "toy" / "toy.bin").read_bytes() == BODY
    assert _everything_in(tmp_path) == ["toy", "toy/toy.bin"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/missing", ["HTTP 404"]),
        ("/truncated", ["expected 5,120,000 bytes", "received 2,560,000"]),
        ("/flipped", [f"expected sha256 {hashlib.sha256(BODY).hexdigest()}", "received "]),
        ("/endless", ["expected 5,120,000 bytes", "received more than"]),
        ("/slow", ["timed out"]),
    ],
)
def test_a_bad_download_is_one_line_and_leaves_nothing(
    served, server, tmp_path, monkeypatch, path, words
):
    monkeypatch.setattr(fetch, "TIMEOUT_SECONDS", 0.3)
    served(path)
    with pytest.raises(RunError) as error_info:
        fetch.fetch("toy", log=str)
    message = str(error_info.value)
    for word in ["toy.bin", f"http://127.0.0.1:{server.server_port}{path}", *words]:
        assert word in message
    assert "\n" not in message
    assert _everything_in(tmp_path) == []
    assert server.bytes_sent < 10 * len(BODY)


def test_a_bad_download_keeps_what_was_there(served, tmp_path):
    served("/flipped")
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.bin").write_bytes(b"mine")
    with pytest.raises(RunError):
        fetch.fetch("toy", log=str)
    assert (tmp_path / "toy" / "toy.bin").read_bytes() == b"mine"
    assert _everything_in(tmp_path) == ["toy", "toy/toy.bin"]


def test_an_interrupted_download_leaves_nothing(served, tmp_path, monkeypatch):
    served("/good")

    def chunks(file):
        yield BODY[:100]
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "_chunks", chunks)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch("toy", log=str)
    assert _everything_in(tmp_path) == []


def test_no_network_is_one_line(served, tmp_path, capsys):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    served("", url=f"http://127.0.0.1:{port}/toy.bin")
    assert run(fetch_cli.command, ["fetch", "toy"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("zoo: error: toy.bin cannot be downloaded from http://127.0.0.1:")
    assert _everything_in(tmp_path) == []


def test_a_full_disk_is_not_called_a_network_error(served, monkeypatch):
    import errno

    served("/good")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error_info:
        fetch.fetch("toy", log=str)
    assert error_info.value.errno == errno.ENOSPC


@pytest.mark.parametrize("name", ["../toy.bin", "a/b", "", ".."])
def test_a_file_name_cannot_leave_its_folder(name):
    with pytest.raises(UsageError, match="must not be a path"):
        FetchFile("http://127.0.0.1/", name, 1, "")


def test_the_command_fetches_into_the_destination(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch_cli._FLAGS["destination"], "value", None)
    served("/good")
    destination = tmp_path / "elsewhere"
    assert run(fetch_cli.command, ["fetch", "toy", f"--destination={destination}"]) == 0
    assert (destination / "toy" / "toy.bin").read_bytes() == BODY
    assert not (tmp_path / "toy").exists()
    assert "toy.bin, 5,120,000 bytes, downloaded" in capsys.readouterr().out


def test_the_command_refuses_every_name_before_it_downloads_one(served, server, capsys):
    served("/good")
    assert run(fetch_cli.command, ["fetch", "toy", "mnits"]) == 2
    assert "Did you mean 'mnist'" in capsys.readouterr().err
    assert server.requests == []


def test_the_command_lists_what_is_there(served, tmp_path, capsys):
    served("/good")
    assert run(fetch_cli.command, ["fetch"]) == 0
    before = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "built in" in before["digits"]
    assert "0 of 4 files" in before["mnist"]
    assert "0 of 1 files" in before["toy"]
    fetch.fetch("toy", log=str)
    run(fetch_cli.command, ["fetch"])
    after = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert after["toy"].split()[1] == "downloaded"


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_originals_are_those_that_tfds_registered(name):
    files = {file.file_name: file for file in datasets.dataset_entry(name).original_files()}
    assert sorted(files) == [
        "t10k-images-idx3-ubyte.gz",
        "t10k-labels-idx1-ubyte.gz",
        "train-images-idx3-ubyte.gz",
        "train-labels-idx1-ubyte.gz",
    ]
    assert all(file.url.endswith("/" + file.file_name) for file in files.values())
    assert all(len(file.sha256) == 64 for file in files.values())
    images = files["train-images-idx3-ubyte.gz"]
    assert images.size == {"mnist": 9_912_422, "fashion_mnist": 26_421_880}[name]
    folder = data_dir() / name
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set ZOO_DATA_DIR to compare with the real files")
    assert all(fetch.is_valid(folder / file.file_name, file) for file in files.values())


def test_a_packed_copy_counts_as_there(served, server, tmp_path):
    """A file that is uncompressed at the source may be compressed on disk."""
    import gzip

    served("/good")
    (tmp_path / "toy").mkdir()
    packed = tmp_path / "toy" / "toy.bin.gz"
    packed.write_bytes(gzip.compress(BODY, 1))
    fetch.fetch("toy")
    assert server.requests == []
    packed.write_bytes(gzip.compress(BODY[:-1], 1))
    fetch.fetch("toy")
    assert server.requests == ["/good"]
