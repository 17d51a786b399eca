"""Stop requests: SIGTERM, or the cloud's notice that it will preempt the machine.

In both cases the run saves a checkpoint after the current update and ends with status 143; the same
command resumes it. After the notice a spot machine has 30 s at Google Cloud and Azure, two minutes
at AWS. A machine with GPUs at Google Cloud is notified an hour before maintenance of its host; a
run that is started again on that machine uses the hour, and SIGTERM saves.

TensorFlow's `PreemptionCheckpointHandler` is not used: it supports MultiWorkerMirroredStrategy and
TPUStrategy only (see its docstring), it saves `tf.train.Checkpoint`s, which do not hold all that a
run must save (see trainers/run/checkpoint.py), and it only polls Google Cloud, and there only for
maintenance, not for preemption of spot machines (`termination_watcher_function_gce` in
failure_handling_util.py, TensorFlow 2.21).

Importing this module does not import TensorFlow.
"""

import contextlib
import json
import logging
import queue
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

_LOG = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two requests, as AWS recommends
# Timeout of a request in seconds; Azure's first response may take two minutes.
PATIENCE = {"gcp": 5.0, "aws": 5.0, "azure": 150.0}
SERVERS = {
    "gcp": "http://metadata.google.internal",
    "aws": "http://169.254.169.254",
    "azure": "http://169.254.169.254",
}
_MAINTENANCE = "maintenance-event is TERMINATE_ON_HOST_MAINTENANCE"


class Stop:
    """The stop requests of a run.

    Args:
      cloud: cloud to poll for preemption notices: "gcp", "aws" or "azure"; "" for none.
      name: name of this worker, if there are several.

    Attributes:
      requested: event that is set once a stop is requested.
      notice: the cloud's preemption notice; "" if there is none.
    """

    def __init__(self, cloud: str = "", name: str = ""):
        self.requested = threading.Event()
        self.notice = ""
        self._cloud, self._prefix = cloud, name and f"{name}: "
        self._warnings: queue.SimpleQueue = queue.SimpleQueue()

    @contextlib.contextmanager
    def listening(self):
        """Returns a context that handles SIGTERM (only in the main thread) and polls the cloud."""
        stop_polling = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        if main:
            previous_handler = signal.signal(signal.SIGTERM, lambda *_: self.requested.set())
        if self._cloud:
            threading.Thread(target=self._poll, args=(stop_polling,), daemon=True).start()
        try:
            yield
        finally:
            stop_polling.set()
            if main:
                signal.signal(signal.SIGTERM, previous_handler)

    def warn(self, event: Callable[[str, str], None] | None) -> None:
        """Passes warnings of the polling thread to `event("warning", line)`, or to stderr."""
        while not self._warnings.empty():
            line = self._warnings.get()
            if event:
                event("warning", line)
            else:
                _LOG.warning(line)

    def _poll(self, stop_polling: threading.Event) -> None:
        first_notice = None  # the server's first response
        has_warned = False
        while not stop_polling.is_set():
            try:
                notice = _CLOUDS[self._cloud](self._cloud)
            except Exception as error:  # a failed request must not end training
                if not has_warned:
                    has_warned = True
                    self._warnings.put(
                        f"cannot read preemption notices from {SERVERS[self._cloud]} (trainer."
                        f"preemption_notice={self._cloud}): {_reason(error)}. Retrying every "
                        f"{EVERY:g} s; SIGTERM still saves a checkpoint."
                    )
            else:
                if first_notice is None and notice.endswith(_MAINTENANCE):
                    self._warnings.put(
                        f"{notice} since before this process started; SIGTERM still saves a "
                        "checkpoint."
                    )
                elif notice and notice != first_notice:
                    self.notice = self._prefix + notice
                    self.requested.set()
                    return
                first_notice = notice if first_notice is None else first_notice
            stop_polling.wait(EVERY)


def _gcp(cloud: str) -> str:
    # https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption and
    # https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
    flavor = {"Metadata-Flavor": "Google"}
    if _get(cloud, "/computeMetadata/v1/instance/preempted", flavor) == "TRUE":
        return "Google Cloud: preempted is TRUE"
    event = _get(cloud, "/computeMetadata/v1/instance/maintenance-event", flavor)
    # With MIGRATE_ON_HOST_MAINTENANCE the machine keeps running.
    return f"Google Cloud: {_MAINTENANCE}" if _MAINTENANCE.endswith(f" {event}") else ""


def _aws(cloud: str) -> str:
    # https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
    seconds = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = _get(cloud, "/latest/api/token", seconds, method="PUT")
    try:
        text = _get(
            cloud, "/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}
        )
    except urllib.error.HTTPError as error:
        if error.code == 404:  # no notice
            return ""
        raise
    action = json.loads(text)
    return f"AWS: instance-action is {action['action']} at {action['time']}"


def _azure(cloud: str) -> str:
    # https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events
    header = {"Metadata": "true"}
    text = _get(cloud, "/metadata/scheduledevents?api-version=2020-07-01", header)
    events = [event for event in json.loads(text)["Events"] if event["EventType"] == "Preempt"]
    if not events:
        return ""
    # Each machine of a set also receives the events of the other machines.
    name = _get(cloud, "/metadata/instance/compute/name?api-version=2020-09-01&format=text", header)
    for event in events:
        if name in event["Resources"]:
            return f"Azure: Preempt, not before {event['NotBefore'] or 'now'}"
    return ""


_CLOUDS = {"gcp": _gcp, "aws": _aws, "azure": _azure}


def _get(cloud: str, path: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(SERVERS[cloud] + path, headers=headers, method=method)
    # The metadata server must not be asked through a proxy from the environment.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE[cloud]) as response:
        return response.read().decode().strip()


def _reason(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error) or type(error).__name__
    code = f"status {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
    return " ".join(f"{code}{text}".split())
