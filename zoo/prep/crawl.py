"""Polite collection of pages from start addresses, into WARC files.

One request at a time; a host is asked again after `delay` seconds, or what its robots.txt asks
for. What robots.txt forbids, to all or to "keras-zoo", is left alone; where it cannot be had for
an error of the server, all is (RFC 9309). Links marked nofollow are not followed.

The frontier is an SQLite file beside the WARC: a page is on the disk before it is marked as done,
so a kill costs one request at most.
"""

import contextlib
import gzip
import json
import os
import re
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from zoo.data.disk import fsync_folder, open_in_place, read_object, write_json
from zoo.errors import RunError, UsageError, short
from zoo.prep import extract, fetch
from zoo.prep.fetch import Answer, Failed, Refused

REDIRECTS = 5
TYPES = ("text/html", "application/xhtml+xml", "text/plain")
WARC_BYTES = 1 << 30
# A robots.txt may ask for any delay; a longer one than this is a refusal.
LONGEST_DELAY = 60.0
_ROBOTS_BYTES = 500 << 10
_ROBOTS_HOSTS = 1000
_FRONTIER = "frontier.sqlite"


def crawl(starts: list[str], settings: Mapping, folder: Path, allow_private: bool = False) -> dict:
    """Crawls until `pages` are had or nothing is left; run again after a kill, it goes on.

    Args:
      starts: addresses.
      settings: the section `prep.crawl`.
      folder: gets pages-00000.warc.gz …, frontier.sqlite and, last, crawl.json.
      allow_private: whether addresses that are not public may be connected to; for tests.

    Returns:
      What crawl.json holds: {"pages": n, "refused": {reason: n}, …}.

    Raises:
      UsageError: a start that is no address, or a folder that another crawl began.
      RunError: no page could be had; the same call tries again.
    """
    for start in starts:
        try:
            fetch.split_url(canonical(start))
        except Refused:
            raise UsageError(f"prep.input: {start!r} is no web address.") from None
    starts = [canonical(start) for start in starts]
    asked = json.loads(json.dumps({"starts": starts, **settings}))
    if (folder / "crawl.json").exists():
        made = read_object(folder / "crawl.json", asked=dict, pages=int, refused=dict)
        if made["asked"] != asked:
            raise UsageError(f"{folder} holds another crawl. Take a new --out.")
        return made
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(_Crawler(folder, asked, allow_private)) as crawler:
            crawler.run()
            made = {"asked": asked, "pages": crawler.pages, "refused": crawler.refused()}
            if not made["pages"]:
                crawler.forget()
    except sqlite3.Error as error:  # damaged, or the disk is full
        raise RunError(f"{folder / _FRONTIER} cannot be used: {short(error)}.") from None
    if not made["pages"]:
        listed = ", ".join(f"{count} {reason}" for reason, count in made["refused"].items())
        raise RunError(f"The crawl of {starts[0]} brought no page: {listed}.")
    write_json(folder / "crawl.json", made)
    return made


def canonical(url: str) -> str:
    """Returns an address as it is compared: no fragment, lower-case host, only ASCII."""
    url = urldefrag(url.strip())[0]
    try:
        parts = urlsplit(url)
        host = (parts.hostname or "").encode("idna").decode() if parts.hostname else ""
        host = f"[{host}]" if ":" in host else host
        if parts.port and parts.port != {"http": 80, "https": 443}.get(parts.scheme):
            host += f":{parts.port}"
        if parts.username:
            return url
        keep = "/%:@!$&'()*+,;=~-._?"
        path, query = quote(parts.path or "/", keep), quote(parts.query, keep)
        return urlunsplit((parts.scheme.lower(), host, path, query, ""))
    except (ValueError, UnicodeError):
        return url


class _Crawler:
    """The loop and its state on disk."""

    def __init__(self, folder: Path, asked: Mapping, allow_private: bool):
        self.folder, self.settings, self.allow_private = folder, asked, allow_private
        self.robots: dict[str, object] = {}
        self.next_time: dict[str, float] = {}
        for ending in ("", "-wal", "-shm", "-journal"):  # SQLite would follow links
            if os.path.lexists(path := folder / f"{_FRONTIER}{ending}"):
                open_in_place(path, "ab").close()
        self.base = sqlite3.connect(folder / _FRONTIER)
        self.base.executescript(
            """
            pragma journal_mode=wal; pragma synchronous=full;
            create table if not exists url (id integer primary key, url text unique not null,
                depth integer not null, state text not null default '');
            create index if not exists waiting on url (state, depth, id);
            create table if not exists fact (name text primary key, value text not null);
            """
        )
        if (begun := self._fact("asked", dict)) is None:
            self._set("asked", asked)
            for start in asked["starts"]:
                self._add(start, 0)
            self.base.commit()
        elif begun != asked:
            raise UsageError(f"{folder} holds another crawl. Take a new --out.")
        starts = {urlsplit(start).hostname for start in asked["starts"]}
        self.sites = starts | set(self._fact("sites", list, str) or ())
        self.pages = self._fact("pages", int) or 0
        self.number, offset = self._fact("place", list, int) or (0, 0)
        self.warc = open_in_place(self._path(), "ab")
        # What stands behind the last page that was marked is half a page.
        self.warc.truncate(offset)
        fsync_folder(folder)

    def close(self):
        self.warc.close()
        self.base.close()

    def _path(self) -> Path:
        return self.folder / f"pages-{self.number:05d}.warc.gz"

    def _fact(self, name: str, kind: type, element: type | None = None):
        """Returns what was set under a name, None for nothing; checks its type."""
        row = self.base.execute("select value from fact where name = ?", [name]).fetchone()
        if row is None:
            return None
        try:
            value = json.loads(row[0])
        except (ValueError, TypeError, RecursionError):
            value = None
        numbers = value if isinstance(value, list) else [value]
        if (
            not isinstance(value, kind)
            or (element and not all(isinstance(one, element) for one in value))
            or any(isinstance(one, int) and not 0 <= one < 2**63 for one in numbers)
            or (name == "place" and len(value) != 2)
        ):
            raise RunError(f"{self.folder / _FRONTIER} is damaged: {name!r} is {short(row[0])}.")
        return value

    def _set(self, name: str, value):
        self.base.execute("insert or replace into fact values (?, ?)", [name, json.dumps(value)])

    def _add(self, url: str, depth: int):
        self.base.execute("insert or ignore into url (url, depth) values (?, ?)", [url, depth])

    def refused(self) -> dict[str, int]:
        rows = self.base.execute(
            "select state, count(*) from url where state not in ('', 'done') group by state"
        )
        return dict(sorted(rows))

    def forget(self):
        """Lets all addresses wait again: what failed may have been a server's bad hour."""
        self.base.execute("update url set state = ''")
        self.base.commit()

    def run(self):
        """Takes the waiting addresses, the shallowest and oldest first, of a host that is ready."""
        said = time.monotonic()
        while self.pages < self.settings["pages"]:
            rows = self.base.execute(
                "select id, url, depth from url where state = '' order by depth, id limit 500"
            ).fetchall()
            if not rows:
                return
            now = time.monotonic()
            soonest = min(rows, key=lambda row: max(now, self._ready(row[1])))
            self._one(*soonest)
            if time.monotonic() - said > 10:
                said = time.monotonic()
                left = self.base.execute("select count(*) from url where state = ''").fetchone()[0]
                print(f"zoo: crawl: {self.pages:,} pages, {left:,} addresses wait", file=sys.stderr)

    def _ready(self, url: str) -> float:
        return self.next_time.get(_host(url), 0.0)

    def _one(self, number: int, url: str, depth: int):
        try:
            answer = self._follow(url, depth == 0)
            state = "done" if self._keep(answer, url, depth) else "already had"
        except (Refused, Failed) as error:
            state = str(error)
        except ValueError:  # of an address or a header that is none
            state = "bad answer"
        self.base.execute("update url set state = ? where id = ?", [state, number])
        self.base.commit()

    def _follow(self, url: str, start: bool) -> Answer:
        """Fetches a page, through redirects; each of their addresses is checked like the first.

        Where a start address leads (example.org to www.example.org) is its site too.
        """
        for _ in range(REDIRECTS + 1):
            if not self.settings["other_sites"] and urlsplit(url).hostname not in self.sites:
                raise Refused("another site")
            if not self._allowed(url):
                raise Refused("robots.txt")
            answer = self._patiently(url, self.settings["max_bytes"])
            if answer.status in (301, 302, 303, 307, 308) and answer.header("Location"):
                url = canonical(urljoin(url, answer.header("Location")))
                if start and (site := urlsplit(url).hostname):
                    self.sites.add(site)
                    self._set("sites", sorted(self.sites))
                continue
            if answer.status != 200:
                raise Refused(f"status {answer.status}")
            if answer.header("Content-Type").partition(";")[0].strip().lower() not in TYPES:
                raise Refused("content type")
            return answer
        raise Refused("too many redirects")

    def _patiently(self, url: str, max_bytes: int) -> Answer:
        """Waits for the host's turn and asks; asks again, later and later, where it fails."""
        wait = self._delay(url)
        for attempt in range(self.settings["retries"] + 1):
            time.sleep(max(0.0, self._ready(url) - time.monotonic()))
            try:
                answer = fetch.get(url, self.settings["timeout"], max_bytes, self.allow_private)
                failure: Exception = Failed(f"status {answer.status}")
                if answer.status != 429 and answer.status < 500:
                    return answer
                asked = answer.header("Retry-After")
                if re.fullmatch("[0-9]{1,6}", asked):
                    wait = max(wait, min(LONGEST_DELAY, int(asked)))
            except Failed as error:
                failure = error
            finally:
                pause = wait if attempt == 0 else wait * 2**attempt + 0.1
                self.next_time[_host(url)] = time.monotonic() + max(wait, min(pause, LONGEST_DELAY))
        raise failure

    # --- robots.txt ---------------------------------------------------------------------------

    def _allowed(self, url: str) -> bool:
        rules = self._robots(url)
        delay = self._asked_delay(rules)
        return rules is not False and delay <= LONGEST_DELAY and (
            rules is True or rules.can_fetch(url, fetch.AGENT)
        )  # fmt: skip

    def _delay(self, url: str) -> float:
        return max(self.settings["delay"], self._asked_delay(self.robots.get(_origin(url), True)))

    @staticmethod
    def _asked_delay(rules) -> float:
        return 0.0 if isinstance(rules, bool) else float(rules.crawl_delay(fetch.AGENT) or 0.0)

    def _robots(self, url: str):
        """Returns the rules of a host; True where it has none, False where all is forbidden."""
        origin = _origin(url)
        if origin not in self.robots:
            if len(self.robots) >= _ROBOTS_HOSTS:
                self.robots.pop(next(iter(self.robots)))
            self.robots[origin] = self._read_robots(f"{origin}/robots.txt")
        return self.robots[origin]

    def _read_robots(self, url: str):
        from protego import Protego

        for _ in range(REDIRECTS + 1):
            try:
                answer = self._patiently(url, _ROBOTS_BYTES)
                if answer.status in (301, 302, 303, 307, 308) and answer.header("Location"):
                    url = canonical(urljoin(url, answer.header("Location")))
                    continue
            except Refused as error:
                if str(error) in ("address is not public", "no web address"):
                    raise
                return False
            except (Failed, ValueError):  # the latter of an address that is none
                return False
            if answer.status == 200:
                return Protego.parse(answer.body.decode("utf-8-sig", "replace"))
            return answer.status not in (401, 403)
        return True

    # --- what a page brings -------------------------------------------------------------------

    def _keep(self, answer: Answer, asked: str, depth: int) -> bool:
        """Writes a page and adds its links; False where a redirect led to a page that was had."""
        if answer.url != asked:
            row = self.base.execute("select state from url where url = ?", [answer.url]).fetchone()
            if row and row[0] == "done":
                return False
            self._add(answer.url, depth)
            self.base.execute("update url set state = 'done' where url = ?", [answer.url])
        if depth < self.settings["depth"]:
            for link in links(answer):
                if self.settings["other_sites"] or urlsplit(link).hostname in self.sites:
                    self._add(link, depth + 1)
        self.warc.write(warc_record(answer))
        self.warc.flush()
        os.fsync(self.warc.fileno())
        self.pages += 1
        if self.warc.tell() > WARC_BYTES:
            self.warc.close()
            self.number += 1
            self.warc = open_in_place(self._path(), "ab")
        self._set("pages", self.pages)
        self._set("place", (self.number, self.warc.tell()))
        return True


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def links(answer: Answer) -> list[str]:
    """Returns the addresses that a page links to and lets robots follow, each once."""
    from zoo.prep.charset import decode
    from zoo.prep.response import Response

    if "html" not in answer.header("Content-Type"):
        return []
    try:
        headers = [(name.lower(), value) for name, value in answer.headers]
        declared = Response(answer.status, headers, b"").charset
        tree = extract.parsed(decode(answer.body, declared))
    except (ValueError, AssertionError, RecursionError):
        return []
    if tree is None:
        return []
    for meta in tree.iter("meta"):
        said = (meta.get("content") or "").lower()
        if (meta.get("name") or "").lower() == "robots" and ("nofollow" in said or "none" in said):
            return []
    base = next((node.get("href") for node in tree.iter("base") if node.get("href")), "")
    found = {}
    for node in tree.iter("a"):
        if "nofollow" in (node.get("rel") or "").lower() or not node.get("href"):
            continue
        try:
            url = canonical(urljoin(urljoin(answer.url, base), node.get("href")))
            fetch.split_url(url)
        except (Refused, ValueError):
            continue
        found[url] = None
    return list(found)


def warc_record(answer: Answer) -> bytes:
    """Returns a page as a gzipped response record of WARC 1.0."""
    left_out = {"content-encoding", "transfer-encoding", "content-length", "connection"}
    head = [f"HTTP/1.1 {answer.status} OK"]
    head += [f"{k}: {v}" for k, v in answer.headers if k.lower() not in left_out]
    head += [f"Content-Length: {len(answer.body)}", "", ""]
    block = "\r\n".join(head).encode("latin-1", "replace") + answer.body
    about = [
        "WARC/1.0",
        "WARC-Type: response",
        f"WARC-Record-ID: <{uuid.uuid4().urn}>",
        f"WARC-Target-URI: {answer.url}",
        f"WARC-Date: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"WARC-IP-Address: {answer.address}",
        "Content-Type: application/http; msgtype=response",
        f"Content-Length: {len(block)}",
        "",
        "",
    ]
    record = "\r\n".join(about).encode() + block + b"\r\n\r\n"
    return gzip.compress(record, 6, mtime=0)


def reasons(made: Mapping) -> Counter:
    """Returns what a crawl left alone, as a tally counts it."""
    return Counter({f"crawl: {reason}": count for reason, count in made["refused"].items()})
