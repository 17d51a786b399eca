"""What `zoo prepare` says on stderr as it runs: a line a step, with rate, drops and time left."""

import sys
import time
from collections import Counter
from collections.abc import Mapping


class Progress:
    """Says how far a step is; on a terminal in place, elsewhere a line in ten seconds at most."""

    def __init__(self, file=None):
        self._file = file or sys.stderr
        self._terminal = self._file.isatty()
        self._every = 0.5 if self._terminal else 10.0

    def start(self, title: str, total: int) -> None:
        """Begins a step of `total` pieces of work."""
        self._title, self._total, self._done, self._there = title, total, 0, 0
        self._documents, self._dropped = 0, Counter()
        self._began = self._said = time.monotonic()

    def there(self, pieces: int) -> None:
        """Counts pieces that an earlier run did."""
        self._done = self._there = pieces

    def tick(self, tally: Mapping | None = None) -> None:
        """Counts a piece that is done, and what its tally (as JSON) says."""
        self._done += 1
        if tally:
            self._documents += max(tally["reached"].values(), default=0)
            for name, count in tally["dropped"].items():
                self._dropped[name.partition(":")[0]] += count
        now = time.monotonic()
        if now - self._said >= self._every:
            self._said = now
            self._say(now - self._began, "\r" if self._terminal else "\n")

    def end(self) -> None:
        """Ends the step."""
        self._say(time.monotonic() - self._began, "\n", ended=True)

    def _say(self, seconds: float, end: str, ended: bool = False):
        words = [f"zoo: {self._title}: "]
        if ended:
            words.append(f"{seconds:,.1f} s")
        else:
            left = seconds / max(1, self._done - self._there) * (self._total - self._done)
            words.append(f"{self._done:,} of {self._total:,}, {left:,.0f} s left")
        if self._documents:
            rate = self._documents / max(seconds, 1e-3)
            words.append(f", {self._documents:,} documents, {rate:,.0f} a second")
        if self._dropped:
            most = ", ".join(f"{name} {count:,}" for name, count in self._dropped.most_common(5))
            words.append(f"; dropped by {most}")
        line = "".join(words)
        print(line.ljust(120) if end == "\r" else line, end=end, file=self._file, flush=True)
