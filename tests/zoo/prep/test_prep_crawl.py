"""Tests the crawler on a site served at 127.0.0.1, and the addresses that it refuses."""

import contextlib
import gzip
import http.server
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import threading
import time

import pytest

from tests import pages

pytest.importorskip("protego", reason="needs the extra `prep`")

from zoo.errors import RunError, UsageError
from zoo.prep import crawl, fetch, pipeline
from zoo.prep.document import Tally
from zoo.prep.engine import LocalEngine
from zoo.prep.fetch import FetchFailed, FetchRefused
from zoo.prep.reading import read


class Site:
    """Serves `pages`: path -> (status, headers, body) or a function of the handler.

    `requests` lists (path, headers, time).
    """

    def __init__(self):
        self.pages, self.requests = {}, []
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.requests.append((self.path, dict(self.headers), time.monotonic()))
                response = site.pages.get(self.path, (404, {}, "none"))
                if callable(response):
                    response = response(self)
                if response is None:
                    return
                status, headers, body = response
                body = body.encode() if isinstance(body, str) else body
                self.send_response(status)
                for key, value in {"Content-Type": "text/html", **headers}.items():
                    self.send_header(key, value)
                if "Content-Length" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def paths(self):
        return [path for path, _, _ in self.requests]

    def page(self, path, *links, body=None, status=200, **headers):
        text = pages.page(path, links=links) if body is None else body
        self.pages[path] = (status, {k.replace("_", "-"): v for k, v in headers.items()}, text)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.shutdown()
    site.server.server_close()


def settings(**changes):
    return pages.settings()["crawl"] | {"delay": 0.0, "timeout": 5.0, "retries": 1} | changes


def run(site, folder, *paths, allow_private=True, **changes):
    starts = [site.url + path for path in paths or ("/",)]
    return crawl.crawl(starts, settings(**changes), folder, allow_private)


def stored_paths(folder):
    """Returns the paths of the pages in the WARC files, in order."""
    prep, documents = pages.settings(), []
    for path in sorted(folder.glob("*.warc.gz")):
        shard = {"files": [{"path": str(path), "kind": "warc"}], "stripe": 0, "stripes": 1}
        documents += read.documents(shard, prep, Tally())
    return ["/" + document.url.split("/", 3)[3] for document in documents]


def test_links_are_followed_to_a_depth_and_robots_txt_is_obeyed(site, tmp_path):
    site.page("/robots.txt", body="User-agent: *\nDisallow: /secret\nDisallow: /*.pdf$\n")
    site.page("/", "/a", "/b#part", "/secret/x", "/file.pdf", "mailto:x@y", "http://other.test/")
    site.page("/a", "/a1", "/")
    site.page("/a1", "/a2")
    site.page("/a2", "/a3")
    site.page("/b", body='<meta name="robots" content="nofollow"><a href="/hidden">x</a>')
    site.page("/c")
    site.pages["/"] = (200, {}, site.pages["/"][2] + '<a rel="nofollow" href="/c">c</a>')
    result = run(site, tmp_path, depth=2)
    assert stored_paths(tmp_path) == ["/", "/a", "/b", "/a1"]
    assert result["pages"] == 4
    assert result["refused"] == {"robots.txt": 2}
    assert not {"/secret/x", "/file.pdf", "/a2", "/hidden", "/c"} & set(site.paths())
    assert {headers["User-Agent"] for _, headers, _ in site.requests} == {fetch.USER_AGENT}
    assert "keras-zoo" in fetch.USER_AGENT
    count = len(site.requests)
    assert run(site, tmp_path, depth=2) == result  # a finished crawl sends no requests
    assert len(site.requests) == count
    with pytest.raises(UsageError, match="another crawl"):
        run(site, tmp_path, depth=3)


@pytest.mark.parametrize(
    ("robots", "pages_stored"),
    [
        ((200, "User-agent: keras-zoo\nDisallow: /\n"), 0),
        ((200, "User-agent: other\nDisallow: /\n"), 1),
        ((200, "\ufeffUser-agent: *\nDisallow: /\n"), 0),
        ((404, "none"), 1),
        ((403, "no"), 0),
        ((500, "broken"), 0),
        ((200, "\0\xff nonsense"), 1),
        ((200, "User-agent: *\nCrawl-delay: 1000\n"), 0),
    ],
)
def test_robots_txt_is_obeyed(site, tmp_path, robots, pages_stored):
    site.page("/robots.txt", status=robots[0], body=robots[1])
    site.page("/")
    if pages_stored:
        assert run(site, tmp_path, retries=0)["pages"] == 1
    else:
        with pytest.raises(RunError, match=r"fetched no page: 1 robots.txt"):
            run(site, tmp_path, retries=0)
        assert "/" not in site.paths()


def test_the_crawl_delay_of_robots_txt_is_kept(site, tmp_path):
    site.page("/robots.txt", body="User-agent: *\nCrawl-delay: 0.4\n")
    site.page("/", "/a", "/b")
    site.page("/a"), site.page("/b")
    run(site, tmp_path, delay=0.1)
    times = [moment for _, _, moment in site.requests[1:]]
    assert len(times) == 3
    assert all(b - a >= 0.39 for a, b in zip(times[:-1], times[1:], strict=True))


def test_large_slow_and_other_content_is_refused(site, tmp_path):
    def send_slowly(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        for _ in range(1200):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    site.page("/", "/large", "/endless", "/drip", "/image", "/bomb", "/loop", "/out", "/broken")
    site.page("/large", body="x", Content_Length=str(10**9))
    site.pages["/endless"] = lambda handler: (200, {"Content-Length": "20000"}, "y" * 20_000)
    site.pages["/drip"] = send_slowly
    site.page("/image", body="GIF", Content_Type="image/gif")
    site.page("/bomb", body=gzip.compress(bytes(10 << 20)), Content_Encoding="gzip")
    site.page("/loop", status=302, body="", Location="/loop")
    site.page("/out", status=302, body="", Location="http://localhost.test/x")
    site.page("/broken", status=503, body="")
    start = time.monotonic()
    result = run(site, tmp_path, max_bytes=15_000, timeout=1.0)
    assert time.monotonic() - start < 30
    assert stored_paths(tmp_path) == ["/"]
    assert result["refused"] == {
        "another site": 1, "content type": 1, "status 503": 1, "timeout": 1, "too large": 3,
        "too many redirects": 1,
    }  # fmt: skip
    assert site.paths().count("/broken") == 2  # one retry
    assert site.paths().count("/loop") == crawl.REDIRECTS + 1


def test_the_redirect_target_of_a_seed_url_is_crawled(site, tmp_path):
    """For example example.org redirects to www.example.org; a link to it is not followed."""
    www = site.url.replace("127.0.0.1", "localhost")
    site.page("/", status=302, body="", Location=f"{www}/home")
    site.page("/home", "/a", f"{www}/b")
    site.page("/a")
    site.page("/b")
    assert run(site, tmp_path / "redirect")["pages"] == 3
    assert set(stored_paths(tmp_path / "redirect")) == {"/home", "/a", "/b"}
    site.page("/", f"{www}/home")
    assert run(site, tmp_path / "link")["pages"] == 1


def test_a_delay_above_the_retry_limit_is_kept(site, tmp_path, monkeypatch):
    site.page("/")
    monkeypatch.setattr(crawl, "LONGEST_DELAY", 0.1)
    site.page("/", "/a")
    site.page("/a")
    start = time.monotonic()
    run(site, tmp_path, delay=0.4)
    times = [moment for path, _, moment in site.requests if path != "/robots.txt"]
    assert times[1] - times[0] >= 0.4
    assert time.monotonic() - start < 30


def test_errors_are_retried(site, tmp_path):
    answers = [(500, {}, "no"), (429, {"Retry-After": "1"}, "no"), (200, {}, pages.page(1))]
    site.pages["/"] = lambda handler: answers.pop(0)
    start = time.monotonic()
    assert run(site, tmp_path, retries=2)["pages"] == 1
    assert time.monotonic() - start >= 1.0


def test_invalid_responses_do_not_end_the_crawl(site, tmp_path):
    """Redirects to an invalid URL and invalid Retry-After values, of pages and of robots.txt."""
    site.page("/robots.txt", status=302, body="", Location="http://[x")
    with pytest.raises(RunError, match=r"fetched no page: 1 robots\.txt"):
        run(site, tmp_path / "robots")
    site.page("/robots.txt", status=429, body="", Retry_After="\u00b2")
    with pytest.raises(RunError, match=r"fetched no page: 1 robots\.txt"):
        run(site, tmp_path / "wait")
    del site.pages["/robots.txt"]
    site.page("/", "/go", "/wait", "/a")
    site.page("/go", status=302, body="", Location="http://[x")
    site.page("/wait", status=503, body="", Retry_After="\u00b2")
    site.page("/a")
    result = run(site, tmp_path / "pages")
    assert stored_paths(tmp_path / "pages") == ["/", "/a"]
    assert result["refused"] == {"invalid response": 1, "status 503": 1}


def test_the_timeout_of_a_page_holds_over_tls(site, tmp_path, monkeypatch):
    """The server sends single bytes, so the socket's own timeout never passes."""
    if not shutil.which("openssl"):
        pytest.skip("needs the command openssl, for a certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-subj", "/CN=127.0.0.1", "-addext",
         "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    site.server.socket = context.wrap_socket(site.server.socket, server_side=True)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    url = site.url.replace("http:", "https:")

    def send_slowly(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n")
        for _ in range(200):
            try:
                handler.wfile.write(b"x")
            except OSError:
                return
            time.sleep(0.05)

    site.page("/", body="whole")
    site.pages["/drip"] = send_slowly
    assert fetch.get(f"{url}/", 5.0, 1000, allow_private=True).body == b"whole"
    start = time.monotonic()
    with pytest.raises(FetchFailed, match="timeout"):
        fetch.get(f"{url}/drip", 1.0, 1000, allow_private=True)
    assert time.monotonic() - start < 5


def test_a_crawl_without_pages_can_be_repeated(site, tmp_path):
    site.page("/robots.txt", status=503, body="")
    site.page("/", status=503, body="")
    for reason in ("1 robots.txt", "1 status 503"):
        with pytest.raises(RunError, match=f"fetched no page: {reason}"):
            run(site, tmp_path, retries=0)
        site.page("/robots.txt", status=404, body="")
    site.page("/")
    assert run(site, tmp_path, retries=0)["pages"] == 1
    assert stored_paths(tmp_path) == ["/"]


def test_a_killed_crawl_continues(site, tmp_path, monkeypatch):
    site.page("/", *(f"/{i}" for i in range(6)))
    for i in range(6):
        site.page(f"/{i}")
    real, urls = crawl.to_warc_record, []

    def dying(response):
        urls.append(response.url)
        if len(urls) == 4:
            raise KeyboardInterrupt
        return real(response)

    monkeypatch.setattr(crawl, "to_warc_record", dying)
    with pytest.raises(KeyboardInterrupt):
        run(site, tmp_path)
    monkeypatch.undo()
    with open(tmp_path / "pages-00000.warc.gz", "ab") as file:
        file.write(b"half a record")
    before = set(site.paths())
    site.requests.clear()
    assert run(site, tmp_path)["pages"] == 7
    assert stored_paths(tmp_path) == ["/", *(f"/{i}" for i in range(6))]
    assert set(site.paths()) & before <= {"/robots.txt", "/2"}


def test_a_crawl_is_prepared(site, tmp_path):
    names = [f"/story{i}" for i in range(6)]
    site.page("/", *names)
    for name in names:
        site.page(name)
    prep = pages.settings(
        input=f"{site.url}/", crawl__delay=0.0, validation=0.2,
        rules=["language", "gopher_quality"],
    )  # fmt: skip
    with LocalEngine(1) as engine:
        about = pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine, allow_private=True)
        assert sum(about["documents"].values()) == 7
        again = pipeline.prepare(prep, pages.DATA, tmp_path / "out", engine, allow_private=True)
    assert again["documents"] == about["documents"]


# --- refused addresses ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254",
     "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1",
     "198.18.0.1", "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1",
     "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
     "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:c0a8:101::1", "2001:db8::1",
     "2001:0:7f00:1::1", "nonsense"],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not fetch.is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "::ffff:1.1.1.1", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_addresses_that_are_public(address):
    assert fetch.is_public(address)


def resolve_to(monkeypatch, *results):
    """Makes successive look-ups return the given address lists; returns the list of names."""
    names, results = [], list(results)

    def getaddrinfo(host, port, *args, **more):
        names.append(host)
        addresses = results.pop(0) if len(results) > 1 else results[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return names


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://localhost/", "http://[::1]/", "http://2130706433/",
     "http://0x7f.1/", "http://127.1/", "http://[::ffff:127.0.0.1]/"],
)  # fmt: skip
def test_private_addresses_are_refused_in_every_notation(site, url, monkeypatch):
    def no_connection(*args, **more):
        raise AssertionError("connected")

    monkeypatch.setattr(socket, "create_connection", no_connection)
    with pytest.raises((FetchRefused, FetchFailed), match=r"address is not public|unknown host"):
        fetch.get(url, 5.0, 1000)


def test_a_host_with_one_private_address_is_refused(monkeypatch):
    resolve_to(monkeypatch, ["8.8.8.8", "10.0.0.1"])
    with pytest.raises(FetchRefused, match="address is not public"):
        fetch.get("http://mixed.example/", 5.0, 1000)


def test_the_connection_goes_to_the_checked_address(monkeypatch):
    """A second look-up would give another address (DNS rebinding)."""
    names = resolve_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    connected = []

    def create_connection(address, timeout):
        connected.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", create_connection)
    with pytest.raises(FetchFailed):
        fetch.get("http://rebind.example:8080/x", 5.0, 1000)
    assert names == ["rebind.example"]
    assert connected == [("93.184.216.34", 8080)]


def test_a_redirect_to_a_private_address_is_refused(site, tmp_path, monkeypatch):
    """The first page has a public address; only the redirect target is private."""
    site.page("/", "/go")
    site.page("/go", status=302, body="", Location="http://inner.example/admin")
    port = site.server.server_port
    real = socket.create_connection

    def getaddrinfo(host, port, *args, **more):
        address = "93.184.216.34" if host == "outer.example" else "10.0.0.7"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    def create_connection(address, timeout):
        assert address[0] == "93.184.216.34", f"connected to {address}"
        return real(("127.0.0.1", port), timeout)

    real_info = socket.getaddrinfo
    monkeypatch.setattr(fetch.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(fetch.socket, "create_connection",
                        lambda address, timeout: _with(monkeypatch, real_info, create_connection,
                                                       address, timeout))  # fmt: skip
    result = crawl.crawl(
        [f"http://outer.example:{port}/"], settings(other_sites=True), tmp_path, False
    )
    assert result["refused"] == {"address is not public": 1}
    assert stored_paths(tmp_path) == ["/"]


def _with(monkeypatch, real_info, create_connection, address, timeout):
    """Connects with the real resolver, because `create_connection` resolves the address again."""
    fake = fetch.socket.getaddrinfo
    fetch.socket.getaddrinfo = real_info
    try:
        return create_connection(address, timeout)
    finally:
        fetch.socket.getaddrinfo = fake


def test_a_private_seed_url_is_refused_by_default(site, tmp_path):
    site.page("/")
    with pytest.raises(RunError, match="address is not public"):
        run(site, tmp_path, allow_private=False)
    assert not site.requests


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "file:///etc/passwd", "http://user:word@example.org/", "http://",
     "http://a b/", "http://example.org/\r\nHost: x", "http://example.org:99999/",
     "http://example.org/" + "a" * 3000],
)  # fmt: skip
def test_invalid_urls_are_refused(url):
    with pytest.raises(FetchRefused, match="invalid URL"):
        fetch.split_url(url)


def test_canonical_urls():
    for url, expected in (
        ("HTTP://Example.ORG:80/a b#c", "http://example.org/a%20b"),
        ("http://example.org", "http://example.org/"),
        ("https://example.org:8443/?q=é", "https://example.org:8443/?q=%C3%A9"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://example.org/%41", "http://example.org/%41"),
    ):
        assert crawl.canonical(url) == expected
        assert crawl.canonical(expected) == expected


def test_links_are_read_in_the_declared_encoding():
    headers = [("Content-Type", "text/html; charset=windows-1251")]
    body = pages.page(1, links=["/привет"]).encode("cp1251")
    response = fetch.FetchResponse("http://example.org/", 200, headers, body, "192.0.2.1")
    assert crawl.links(response) == ["http://example.org/%D0%BF%D1%80%D0%B8%D0%B2%D0%B5%D1%82"]


@pytest.mark.parametrize("coding", ["gzip", "x-gzip"])
def test_a_truncated_compressed_page_fails(site, coding):
    packed = gzip.compress(pages.page(1).encode())
    site.pages["/whole"] = (200, {"Content-Encoding": coding}, packed)
    site.pages["/half"] = (200, {"Content-Encoding": coding}, packed[: len(packed) // 2])
    response = fetch.get(f"{site.url}/whole", 5.0, 1 << 20, allow_private=True)
    assert response.body == pages.page(1).encode()
    with pytest.raises(FetchFailed):
        fetch.get(f"{site.url}/half", 5.0, 1 << 20, allow_private=True)


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_frontier_that_is_not_a_regular_file_is_refused(site, tmp_path, ending, kind):
    foreign, path = tmp_path / "foreign", tmp_path / "crawl" / f"frontier.sqlite{ending}"
    path.parent.mkdir()
    if kind == "link":
        foreign.write_bytes(b"")
    if kind in ("link", "dangling"):
        path.symlink_to(foreign)
    else:
        {"pipe": os.mkfifo, "folder": os.mkdir}[kind](path)
    with pytest.raises(RunError, match=f"frontier.sqlite{ending} cannot be written: it is"):
        run(site, tmp_path / "crawl")
    assert foreign.exists() == (kind == "link")
    assert kind != "link" or not foreign.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("asked", "x"),
        ("place", '["../x", 1]'),
        ("place", "[-1, 0]"),
        ("place", "[1]"),
        ("pages", '"x"'),
        ("sites", "[5]"),
    ],
)
def test_a_damaged_frontier_is_reported_in_one_line(site, tmp_path, name, value):
    starts = {"starts": [f"{site.url}/"]}
    crawl._Crawler(tmp_path, starts | settings(), True).close()
    with contextlib.closing(sqlite3.connect(tmp_path / "frontier.sqlite")) as base:
        base.execute("insert or replace into fact values (?, ?)", [name, value])
        base.commit()
    with pytest.raises(RunError, match=f"frontier.sqlite is damaged: '{name}' is"):
        run(site, tmp_path)
    (tmp_path / "frontier.sqlite").write_text("no data base" * 100)
    with pytest.raises(RunError, match="frontier.sqlite cannot be used: file is not a database"):
        run(site, tmp_path)
    (tmp_path / "crawl.json").write_text("{}")
    with pytest.raises(RunError, match="crawl.json is damaged: missing key 'asked'"):
        run(site, tmp_path)
