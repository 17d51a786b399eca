"""Preemption notices save and stop a run like SIGTERM; local servers simulate the clouds."""

import contextlib
import http.server
import json
import socket
import threading
import time

import keras
import pytest

from tests import toys
from tests.trainers.train import test_resume
from trainers.config.recipe import change
from trainers.distributed import preemption
from trainers.distributed.preemption import Stop
from trainers.run.workdir import read_metrics
from zoo.errors import UsageError

PREEMPTED = "/computeMetadata/v1/instance/preempted"
MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
ACTION = "/latest/meta-data/spot/instance-action"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
NAME = "/metadata/instance/compute/name?api-version=2020-09-01&format=text"


def events(*entries):
    return json.dumps({"DocumentIncarnation": 1, "Events": list(entries)})


def preempt(*machines, kind="Preempt"):
    return {
        "EventId": "1", "EventStatus": "Scheduled", "EventType": kind,
        "ResourceType": "VirtualMachine", "Resources": list(machines),
        "NotBefore": "Thu, 26 Nov 2026 05:00:00 GMT",
    }  # fmt: skip


# Answers of the servers without a notice; AWS then has no such page.
QUIET = {PREEMPTED: "FALSE", MAINTENANCE: "NONE", EVENTS: events(), NAME: "mine"}
MINE = events(preempt("mine"))
ACTION_TEXT = '{"action": "terminate", "time": "2026-11-26T05:00:00Z"}'
AZURE = "Azure: Preempt, not before Thu, 26 Nov 2026 05:00:00 GMT"


class Cloud(http.server.ThreadingHTTPServer):
    """Metadata servers of all three clouds; they require headers and count requests in `asked`."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.asked, self.tokens = dict(QUIET), 0, set()
        self.address = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, text=""):
        self.server.asked += 1
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        if self.path != "/latest/api/token":
            return self.answer(405)
        if int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"]) > 21600:
            return self.answer(400)
        self.server.tokens.add(f"token {self.server.asked}")
        return self.answer(200, f"token {self.server.asked}")

    def do_GET(self):
        allowed = {
            "computeMetadata": self.headers["Metadata-Flavor"] == "Google",
            "latest": self.headers["X-aws-ec2-metadata-token"] in self.server.tokens,
            "metadata": self.headers["Metadata"] == "true",
        }
        if not allowed[self.path.split("/")[1]]:
            return self.answer(401)
        if self.path not in self.server.pages:
            return self.answer(404)
        return self.answer(200, self.server.pages[self.path])


@contextlib.contextmanager
def serving():
    """Runs a `Cloud` in a thread."""
    server = Cloud()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cloud(monkeypatch):
    monkeypatch.setattr(preemption, "EVERY", 0.01)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # no proxy listens there
    with serving() as server:
        for name in preemption.SERVERS:
            monkeypatch.setitem(preemption.SERVERS, name, server.address)
        yield server


def warnings(stop):
    messages = []
    stop.warn(lambda kind, line: messages.append((kind, line)))
    return messages


def warned(stop):
    """Waits for a warning; returns the first one."""
    deadline = time.monotonic() + 20
    while not (messages := warnings(stop)):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return messages[0]


def wait_until_asked(cloud, more=8):
    until, deadline = cloud.asked + more, time.monotonic() + 20
    while cloud.asked < until:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize(
    ("name", "calm", "page", "text", "message"),
    [
        ("gcp", QUIET, PREEMPTED, "TRUE", "Google Cloud: preempted is TRUE"),
        # A migrated machine continues to run.
        ("gcp", {MAINTENANCE: "MIGRATE_ON_HOST_MAINTENANCE"}, MAINTENANCE,
         "TERMINATE_ON_HOST_MAINTENANCE",
         "Google Cloud: maintenance-event is TERMINATE_ON_HOST_MAINTENANCE"),
        ("aws", QUIET, ACTION, ACTION_TEXT,
         "AWS: instance-action is terminate at 2026-11-26T05:00:00Z"),
        # Events of other machines and of other types do not stop the run.
        ("azure", {EVENTS: events(preempt("other"), preempt("mine", kind="Freeze"))}, EVENTS,
         events(preempt("other"), preempt("a", "mine")), AZURE),
    ],
)  # fmt: skip
def test_a_notice_asks_to_stop(cloud, name, calm, page, text, message):
    cloud.pages.update(calm)
    stop = Stop(name)
    with stop.listening():
        wait_until_asked(cloud)
        assert not stop.requested.is_set()
        cloud.pages[page] = text
        assert stop.requested.wait(20)
    assert stop.notice == message
    assert warnings(stop) == []


def test_of_several_workers_one_is_named(cloud):
    cloud.pages[PREEMPTED] = "TRUE"
    stop = Stop("gcp", "worker 1 (b:2)")
    with stop.listening():
        assert stop.requested.wait(20)
    assert stop.notice == "worker 1 (b:2): Google Cloud: preempted is TRUE"


def test_maintenance_known_from_the_start_does_not_stop_again(cloud):
    """Maintenance is announced an hour ahead: otherwise a restarted run would stop at once."""
    cloud.pages[MAINTENANCE] = "TERMINATE_ON_HOST_MAINTENANCE"
    stop = Stop("gcp")
    with stop.listening():
        wait_until_asked(cloud)
        assert not stop.requested.is_set()
        ((kind, line),) = warnings(stop)
        assert kind == "warning"
        assert "TERMINATE_ON_HOST_MAINTENANCE since before this process started" in line
        cloud.pages[PREEMPTED] = "TRUE"
        assert stop.requested.wait(20)


def test_nothing_is_asked_after_the_run_or_without_the_key(cloud):
    threads = threading.active_count()
    with Stop("gcp").listening():
        wait_until_asked(cloud)
    requests = cloud.asked
    with Stop().listening():
        time.sleep(0.1)
    assert cloud.asked <= requests + 2  # requests in flight
    deadline = time.monotonic() + 20
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= threads


def closed(stack):
    return "http://127.0.0.1:9"


def silent(stack):
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize("name", preemption.SERVERS)
@pytest.mark.parametrize("address", [closed, silent])
def test_a_server_that_does_not_answer_is_one_warning(cloud, monkeypatch, name, address):
    """After the failures the server answers, and its notice stops the run."""
    working = preemption.SERVERS[name]
    monkeypatch.setitem(preemption.PATIENCE, name, 0.05)
    stop = Stop(name)
    with contextlib.ExitStack() as stack:
        monkeypatch.setitem(preemption.SERVERS, name, address(stack))
        stack.enter_context(stop.listening())
        kind, line = warned(stop)
        assert kind == "warning"
        assert f"preemption_notice={name}): " in line
        assert "\n" not in line
        time.sleep(0.1)
        monkeypatch.setitem(preemption.PATIENCE, name, 5.0)
        monkeypatch.setitem(preemption.SERVERS, name, working)
        wait_until_asked(cloud)
        cloud.pages.update({PREEMPTED: "TRUE", ACTION: ACTION_TEXT, EVENTS: MINE})
        assert stop.requested.wait(20)
    assert warnings(stop) == []


@pytest.mark.parametrize(
    ("name", "page", "text"),
    [
        ("gcp", PREEMPTED, None),
        ("gcp", MAINTENANCE, None),
        ("aws", ACTION, "<html>"),
        ("aws", ACTION, "{}"),
        ("azure", EVENTS, "[1]"),
        ("azure", EVENTS, None),
        ("azure", NAME, None),
    ],
)
def test_nonsense_is_one_warning(cloud, name, page, text):
    cloud.pages.update({EVENTS: MINE, page: text})
    if text is None:
        del cloud.pages[page]
    stop = Stop(name)
    with stop.listening():
        warned(stop)
        wait_until_asked(cloud)
        assert not stop.requested.is_set()
    assert warnings(stop) == []


def test_a_worker_that_is_not_the_chief_warns_on_stderr(cloud, capsys):
    cloud.pages[ACTION] = "{}"
    stop = Stop("aws")
    with stop.listening():
        wait_until_asked(cloud)
    stop.warn(None)
    message = capsys.readouterr().err
    assert message.startswith("zoo: cannot read preemption notices from http://127.0.0.1")
    assert message.count("\n") == 1


def test_a_run_saves_says_why_and_goes_on_to_the_same_end(
    cloud, monkeypatch, run, tmp_path, capsys
):
    from trainers.train.loop import Terminated
    from trainers.train.trainer import Trainer

    class Notice(keras.callbacks.Callback):
        """Sends the notice after update 6 and waits until it is read."""

        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.count.numpy()) == 6:
                cloud.pages[PREEMPTED] = "TRUE"
                assert trainer.stop.requested.wait(20)

    class Wait(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            deadline = time.monotonic() + 20
            while trainer.stop._warnings.empty():
                assert time.monotonic() < deadline
                time.sleep(0.005)

    data, parts = toys.token_data(), tmp_path / "parts"
    run(toys.recipe(), data, workdir=tmp_path / "whole")
    config = toys.recipe(preemption_notice="gcp")
    trainer = Trainer(config, parts, dataset=data, callbacks=[Notice()])
    with pytest.raises(Terminated, match="^a preemption notice$"):
        trainer.train()
    assert test_resume.last_arrays(parts)[0] == 6
    (line,) = [line for line in read_metrics(parts) if line.get("event") == "preemption notice"]
    assert (line["step"], line["detail"]) == (6, "Google Cloud: preempted is TRUE")
    assert "preemption notice at step 6: Google Cloud" in capsys.readouterr().err

    # Resumes with another cloud, whose server does not answer: the key
    # trainer.preemption_notice does not change the training.
    monkeypatch.setitem(preemption.SERVERS, "aws", "http://127.0.0.1:9")
    config = toys.recipe(preemption_notice="aws")
    trainer = Trainer(config, parts, dataset=data, callbacks=[Wait()])
    trainer.train()
    test_resume.assert_same_end(tmp_path / "whole", parts)
    (line,) = [line for line in read_metrics(parts) if line.get("event") == "warning"]
    assert "preemption_notice=aws): [Errno 111] Connection refused" in line["detail"]
    assert "SIGTERM still saves" in line["detail"]


def test_an_unknown_cloud_is_refused():
    with pytest.raises(
        UsageError, match="No cloud of .* 'gce'. Did you mean 'gcp'.* Known: gcp, aws, azure"
    ):
        change(toys.recipe(), [("trainer.preemption_notice", "gce")])
