"""Who asks a run to stop: SIGTERM, or the cloud's notice that it will take the machine away.

Either way the run saves after its update and ends with status 143; started again, it goes on. From
the notice on a spot machine has 30 s at Google Cloud and Azure, two minutes at AWS. A machine with
GPUs at Google Cloud hears of its host's maintenance an hour ahead; started again on that machine,
the run uses the hour, and SIGTERM saves.

TensorFlow's own `PreemptionCheckpointHandler` is not used: it is for MultiWorkerMirroredStrategy
and TPUStrategy alone (says its docstring), it saves `tf.train.Checkpoint`s (for what a run of ours
must keep, see trainers/run/checkpoint.py), and by itself it asks only Google Cloud, and there only
for maintenance, not whether a spot machine is taken away (`termination_watcher_function_gce` in its
failure_handling_util.py, TensorFlow 2.21). That all workers stop after the same update, the trainer
sees to for SIGTERM already.

Loads no TensorFlow.
"""

import contextlib
import json
import queue
import signal
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable

EVERY = 5.0  # seconds between two questions; what AWS recommends
PATIENCE = {"gcp": 5.0, "aws": 5.0, "azure": 150.0}  # s; Azure's first answer may take two minutes
SERVERS = {
    "gcp": "http://metadata.google.internal",
    "aws": "http://169.254.169.254",
    "azure": "http://169.254.169.254",
}
_MAINTENANCE = "maintenance-event is TERMINATE_ON_HOST_MAINTENANCE"


class Stop:
    """Whether a run is asked to stop.

    Args:
      cloud: whose notices count: "gcp", "aws" or "azure"; "" for none.
      name: of this worker, one of several.

    Attributes:
      asked: set from then on.
      notice: what the cloud said; "" if nothing.
    """

    def __init__(self, cloud: str = "", name: str = ""):
        self.asked = threading.Event()
        self.notice = ""
        self._cloud, self._prefix = cloud, name and f"{name}: "
        self._warnings: queue.SimpleQueue = queue.SimpleQueue()

    @contextlib.contextmanager
    def listening(self):
        """Around a run: listens to SIGTERM (in the main thread, as Python must) and the cloud."""
        ended = threading.Event()
        main = threading.current_thread() is threading.main_thread()
        if main:
            former = signal.signal(signal.SIGTERM, lambda *_: self.asked.set())
        if self._cloud:
            threading.Thread(target=self._poll, args=(ended,), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            if main:
                signal.signal(signal.SIGTERM, former)

    def warn(self, event: Callable[[str, str], None] | None) -> None:
        """Hands what went wrong to `event("warning", line)`, or to stderr, from the main thread."""
        while not self._warnings.empty():
            line = self._warnings.get()
            if event:
                event("warning", line)
            else:
                print(f"warning: {line}", file=sys.stderr, flush=True)

    def _poll(self, ended: threading.Event) -> None:
        known = None  # what the server said first
        warned = False
        while not ended.is_set():
            try:
                notice = _CLOUDS[self._cloud](self._cloud)
            except Exception as error:  # whatever it answers: training goes on
                if not warned:
                    warned = True
                    self._warnings.put(
                        f"no preemption notice can be had of {SERVERS[self._cloud]} (trainer."
                        f"preemption_notice={self._cloud}): {_said(error)}. It is asked again "
                        f"every {EVERY:g} s; SIGTERM saves as ever."
                    )
            else:
                if known is None and notice.endswith(_MAINTENANCE):
                    self._warnings.put(f"{notice} since before this start; SIGTERM will save.")
                elif notice and notice != known:
                    self.notice = self._prefix + notice
                    self.asked.set()
                    return
                known = notice if known is None else known
            ended.wait(EVERY)


def _gcp(cloud: str) -> str:
    # https://cloud.google.com/compute/docs/instances/create-use-spot#detect-preemption and
    # https://cloud.google.com/compute/docs/metadata/getting-live-migration-notice
    flavor = {"Metadata-Flavor": "Google"}
    if _get(cloud, "/computeMetadata/v1/instance/preempted", flavor) == "TRUE":
        return "Google Cloud: preempted is TRUE"
    event = _get(cloud, "/computeMetadata/v1/instance/maintenance-event", flavor)
    # A machine that is migrated (MIGRATE_ON_HOST_MAINTENANCE) runs on.
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
        if error.code == 404:  # there is none
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
    # Machines of a set hear of each other's events too.
    name = _get(cloud, "/metadata/instance/compute/name?api-version=2020-09-01&format=text", header)
    for event in events:
        if name in event["Resources"]:
            return f"Azure: Preempt, not before {event['NotBefore'] or 'now'}"
    return ""


_CLOUDS = {"gcp": _gcp, "aws": _aws, "azure": _azure}


def _get(cloud: str, path: str, headers: dict[str, str], method: str = "GET") -> str:
    request = urllib.request.Request(SERVERS[cloud] + path, headers=headers, method=method)
    # Asked directly, whatever proxy the environment names.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=PATIENCE[cloud]) as answer:
        return answer.read().decode().strip()


def _said(error: Exception) -> str:
    text = str(getattr(error, "reason", "") or error) or type(error).__name__
    code = f"status {error.code}, " if isinstance(error, urllib.error.HTTPError) else ""
    return " ".join(f"{code}{text}".split())
