"""Crawls pages from seed URLs into WARC files, with a delay per host and robots.txt.

One request runs at a time. Requests to the same host are `delay` seconds apart, or longer if its
robots.txt asks for that. Pages that robots.txt disallows for "*" or "keras-zoo" are not fetched; if
robots.txt cannot be fetched because of a server error, no page of the host is fetched (RFC 9309).
Links with nofollow are not followed.

The frontier is an SQLite file beside the WARC files. A page is on disk before the frontier marks it
as done, so a kill loses at most one request.
"""

import contextlib
import gzip
import json
import os
import re
import sqlite3
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote, urldefrag, urljoin, urlsplit, urlunsplit

from zoo.errors import RunError, UsageError, short
from zoo.prep import fetch
from zoo.prep.cleaning import extract
from zoo.prep.fetch import FetchFailed, FetchRefused, FetchResponse
from zoo.prep.reading.charset import decode
from zoo.prep.reading.response import Response
from zoo.progress import progress
from zoo.storage.disk import fsync_folder, open_in_place, read_object, write_json

REDIRECTS = 5
TYPES = ("text/html", "application/xhtml+xml", "text/plain")
WARC_BYTES = 1 << 30
# Seconds. A host whose robots.txt asks for a longer delay is not crawled.
LONGEST_DELAY = 60.0
_ROBOTS_BYTES = 500 << 10
_ROBOTS_HOSTS = 1000
_FRONTIER = "frontier.sqlite"


def crawl(
    seed_urls: list[str], settings: Mapping, folder: Path, allow_private: bool = False
) -> dict:
    """Crawls until `pages` pages are stored or no URL is left. Continues after a kill.

    Args:
      seed_urls: seed URLs.
      settings: section `prep.crawl` of the recipe.
      folder: gets pages-00000.warc.gz …, frontier.sqlite and, last, crawl.json.
      allow_private: whether connections to IP addresses that are not public are allowed; for tests.

    Returns:
      The content of crawl.json: {"pages": n, "refused": {reason: n}, …}.

    Raises:
      UsageError: if a seed URL is invalid, or the folder contains another crawl.
      RunError: if no page could be fetched; another call tries again.
    """
    for url in seed_urls:
        try:
            fetch.split_url(canonical(url))
        except FetchRefused:
            raise UsageError(
                f"A URL in prep.input must be http:// or https://. Received: {url!r}."
            ) from None
    seed_urls = [canonical(url) for url in seed_urls]
    request = json.loads(json.dumps({"starts": seed_urls, **settings}))
    if (folder / "crawl.json").exists():
        result = read_object(folder / "crawl.json", asked=dict, pages=int, refused=dict)
        if result["asked"] != request:
            raise UsageError(f"{folder} contains another crawl. Choose another --out.")
        return result
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(_Crawler(folder, request, allow_private)) as crawler:
            crawler.run()
            result = {"asked": request, "pages": crawler.pages, "refused": crawler.refusal_counts()}
            if not result["pages"]:
                crawler.reset()
    except sqlite3.Error as error:  # damaged, or the disk is full
        raise RunError(f"{folder / _FRONTIER} cannot be used: {short(error)}.") from None
    if not result["pages"]:
        reasons = ", ".join(f"{count} {reason}" for reason, count in result["refused"].items())
        raise RunError(f"The crawl of {seed_urls[0]} fetched no page: {reasons}.")
    write_json(folder / "crawl.json", result)
    return result


def canonical(url: str) -> str:
    """Returns the canonical form of a URL: no fragment, lower-case host, only ASCII."""
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
    """Runs the crawl loop and keeps its state in SQLite."""

    def __init__(self, folder: Path, request: Mapping, allow_private: bool):
        self.folder, self.settings, self.allow_private = folder, request, allow_private
        self.robots: dict[str, object] = {}
        self.next_time: dict[str, float] = {}
        for ending in ("", "-wal", "-shm", "-journal"):  # SQLite would follow symbolic links
            if os.path.lexists(path := folder / f"{_FRONTIER}{ending}"):
                open_in_place(path, "ab").close()
        self.database = sqlite3.connect(folder / _FRONTIER)
        self.database.executescript(
            """
            pragma journal_mode=wal; pragma synchronous=full;
            create table if not exists url (id integer primary key, url text unique not null,
                depth integer not null, state text not null default '');
            create index if not exists waiting on url (state, depth, id);
            create table if not exists fact (name text primary key, value text not null);
            """
        )
        if (stored_request := self._load_fact("asked", dict)) is None:
            self._store_fact("asked", request)
            for url in request["starts"]:
                self._add(url, 0)
            self.database.commit()
        elif stored_request != request:
            raise UsageError(f"{folder} contains another crawl. Choose another --out.")
        seed_hosts = {urlsplit(url).hostname for url in request["starts"]}
        self.sites = seed_hosts | set(self._load_fact("sites", list, str) or ())
        self.pages = self._load_fact("pages", int) or 0
        self.number, offset = self._load_fact("place", list, int) or (0, 0)
        self.warc = open_in_place(self._path(), "ab")
        # Bytes after the last stored page are a record that a kill interrupted.
        self.warc.truncate(offset)
        fsync_folder(folder)

    def close(self):
        self.warc.close()
        self.database.close()

    def _path(self) -> Path:
        return self.folder / f"pages-{self.number:05d}.warc.gz"

    def _load_fact(self, name: str, kind: type, element: type | None = None):
        """Returns the stored value of a name, None if there is none; checks its type."""
        row = self.database.execute("select value from fact where name = ?", [name]).fetchone()
        if row is None:
            return None
        try:
            value = json.loads(row[0])
        except (ValueError, TypeError, RecursionError):
            value = None
        numbers = value if isinstance(value, list) else [value]
        if (
            not isinstance(value, kind)
            or (element and not all(isinstance(item, element) for item in value))
            or any(isinstance(item, int) and not 0 <= item < 2**63 for item in numbers)
            or (name == "place" and len(value) != 2)
        ):
            raise RunError(
                f"{self.folder / _FRONTIER} is damaged: {name!r} is {short(row[0])}. "
                f"Delete the folder {self.folder} to crawl again."
            )
        return value

    def _store_fact(self, name: str, value):
        self.database.execute(
            "insert or replace into fact values (?, ?)", [name, json.dumps(value)]
        )

    def _add(self, url: str, depth: int):
        self.database.execute("insert or ignore into url (url, depth) values (?, ?)", [url, depth])

    def refusal_counts(self) -> dict[str, int]:
        """Returns the number of URLs without a stored page, by reason."""
        rows = self.database.execute(
            "select state, count(*) from url where state not in ('', 'done') group by state"
        )
        return dict(sorted(rows))

    def reset(self):
        """Marks all URLs as waiting again, because the failures may be temporary."""
        self.database.execute("update url set state = ''")
        self.database.commit()

    def run(self):
        """Visits waiting URLs of hosts whose delay is over, smallest depth and oldest first."""
        pages = self.settings["pages"]
        with progress(title="crawl", unit="pages", total=pages, initial=self.pages) as bar:
            while self.pages < pages:
                rows = self.database.execute(
                    "select id, url, depth from url where state = '' order by depth, id limit 500"
                ).fetchall()
                if not rows:
                    return
                now = time.monotonic()
                soonest = min(rows, key=lambda row: max(now, self._ready_time(row[1])))
                self._visit(*soonest)
                bar.update(self.pages - bar.n)

    def _ready_time(self, url: str) -> float:
        return self.next_time.get(_host(url), 0.0)

    def _visit(self, row_id: int, url: str, depth: int):
        try:
            response = self._follow(url, depth == 0)
            state = "done" if self._store(response, url, depth) else "redirects to a stored page"
        except (FetchRefused, FetchFailed) as error:
            state = str(error)
        except ValueError:  # an invalid URL or header
            state = "invalid response"
        self.database.execute("update url set state = ? where id = ?", [state, row_id])
        self.database.commit()

    def _follow(self, url: str, is_seed: bool) -> FetchResponse:
        """Fetches a page and follows redirects; each target is checked like the first URL.

        The host that a seed URL redirects to (example.org to www.example.org) may be crawled too.
        """
        for _ in range(REDIRECTS + 1):
            if not self.settings["other_sites"] and urlsplit(url).hostname not in self.sites:
                raise FetchRefused("another site")
            if not self._is_allowed(url):
                raise FetchRefused("robots.txt")
            response = self._fetch(url, self.settings["max_bytes"])
            if target := _redirect(response, url):
                url = target
                if is_seed and (site := urlsplit(url).hostname):
                    self.sites.add(site)
                    self._store_fact("sites", sorted(self.sites))
                continue
            if response.status != 200:
                raise FetchRefused(f"status {response.status}")
            if response.header("Content-Type").partition(";")[0].strip().lower() not in TYPES:
                raise FetchRefused("content type")
            return response
        raise FetchRefused("too many redirects")

    def _fetch(self, url: str, max_bytes: int) -> FetchResponse:
        """Waits for the delay of the host and fetches; retries with exponential backoff."""
        wait = self._delay(url)
        for attempt in range(self.settings["retries"] + 1):
            time.sleep(max(0.0, self._ready_time(url) - time.monotonic()))
            try:
                response = fetch.get(url, self.settings["timeout"], max_bytes, self.allow_private)
                failure: Exception = FetchFailed(f"status {response.status}")
                if response.status != 429 and response.status < 500:
                    return response
                retry_after = response.header("Retry-After")
                if re.fullmatch("[0-9]{1,6}", retry_after):
                    wait = max(wait, min(LONGEST_DELAY, int(retry_after)))
            except FetchFailed as error:
                failure = error
            finally:
                pause = wait if attempt == 0 else wait * 2**attempt + 0.1
                self.next_time[_host(url)] = time.monotonic() + max(wait, min(pause, LONGEST_DELAY))
        raise failure

    # --- robots.txt ---------------------------------------------------------------------------

    def _is_allowed(self, url: str) -> bool:
        rules = self._robots(url)
        delay = self._crawl_delay(rules)
        return rules is not False and delay <= LONGEST_DELAY and (
            rules is True or rules.can_fetch(url, fetch.AGENT)
        )  # fmt: skip

    def _delay(self, url: str) -> float:
        return max(self.settings["delay"], self._crawl_delay(self.robots.get(_origin(url), True)))

    @staticmethod
    def _crawl_delay(rules) -> float:
        return 0.0 if isinstance(rules, bool) else float(rules.crawl_delay(fetch.AGENT) or 0.0)

    def _robots(self, url: str):
        """Returns the robots.txt rules of a host: True allows all pages, False allows none."""
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
                response = self._fetch(url, _ROBOTS_BYTES)
                if target := _redirect(response, url):
                    url = target
                    continue
            except FetchRefused as error:
                if str(error) in ("address is not public", "invalid URL"):
                    raise
                return False
            except (FetchFailed, ValueError):  # ValueError: an invalid URL
                return False
            if response.status == 200:
                return Protego.parse(response.body.decode("utf-8-sig", "replace"))
            return response.status not in (401, 403)
        return True

    # --- pages --------------------------------------------------------------------------------

    def _store(self, response: FetchResponse, requested_url: str, depth: int) -> bool:
        """Writes a page and adds its links; returns False if a redirect led to a stored page."""
        if response.url != requested_url:
            query = "select state from url where url = ?"
            row = self.database.execute(query, [response.url]).fetchone()
            if row and row[0] == "done":
                return False
            self._add(response.url, depth)
            self.database.execute("update url set state = 'done' where url = ?", [response.url])
        if depth < self.settings["depth"]:
            for link in links(response):
                if self.settings["other_sites"] or urlsplit(link).hostname in self.sites:
                    self._add(link, depth + 1)
        self.warc.write(to_warc_record(response))
        self.warc.flush()
        os.fsync(self.warc.fileno())
        self.pages += 1
        if self.warc.tell() > WARC_BYTES:
            self.warc.close()
            self.number += 1
            self.warc = open_in_place(self._path(), "ab")
        self._store_fact("pages", self.pages)
        self._store_fact("place", (self.number, self.warc.tell()))
        return True


def _redirect(response: FetchResponse, url: str) -> str:
    """Returns the canonical target of a redirect, "" if the response is none."""
    location = response.header("Location")
    redirects = response.status in (301, 302, 303, 307, 308) and location
    return canonical(urljoin(url, location)) if redirects else ""


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def links(response: FetchResponse) -> list[str]:
    """Returns the URLs that a page links to and allows robots to follow, each once."""
    if "html" not in response.header("Content-Type"):
        return []
    try:
        headers = [(name.lower(), value) for name, value in response.headers]
        declared_charset = Response(response.status, headers, b"").charset
        tree = extract.parse_html(decode(response.body, declared_charset))
    except (ValueError, AssertionError, RecursionError):
        return []
    if tree is None:
        return []
    for meta in tree.iter("meta"):
        rule = (meta.get("content") or "").lower()
        if (meta.get("name") or "").lower() == "robots" and ("nofollow" in rule or "none" in rule):
            return []
    base = next((node.get("href") for node in tree.iter("base") if node.get("href")), "")
    urls = {}
    for node in tree.iter("a"):
        if "nofollow" in (node.get("rel") or "").lower() or not node.get("href"):
            continue
        try:
            url = canonical(urljoin(urljoin(response.url, base), node.get("href")))
            fetch.split_url(url)
        except (FetchRefused, ValueError):
            continue
        urls[url] = None
    return list(urls)


def to_warc_record(response: FetchResponse) -> bytes:
    """Returns a page as a gzipped response record of WARC 1.0."""
    omitted_headers = {"content-encoding", "transfer-encoding", "content-length", "connection"}
    head = [f"HTTP/1.1 {response.status} OK"]
    head += [f"{k}: {v}" for k, v in response.headers if k.lower() not in omitted_headers]
    head += [f"Content-Length: {len(response.body)}", "", ""]
    block = "\r\n".join(head).encode("latin-1", "replace") + response.body
    headers = [
        "WARC/1.0",
        "WARC-Type: response",
        f"WARC-Record-ID: <{uuid.uuid4().urn}>",
        f"WARC-Target-URI: {response.url}",
        f"WARC-Date: {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"WARC-IP-Address: {response.address}",
        "Content-Type: application/http; msgtype=response",
        f"Content-Length: {len(block)}",
        "",
        "",
    ]
    record = "\r\n".join(headers).encode() + block + b"\r\n\r\n"
    return gzip.compress(record, 6, mtime=0)


def skip_counts(result: Mapping) -> Counter:
    """Returns the URLs without a page per reason, from the result of `crawl`, for a tally."""
    return Counter({f"crawl: {reason}": count for reason, count in result["refused"].items()})
