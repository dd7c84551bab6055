from __future__ import annotations

import base64
import contextlib
import errno
import io
import os
import re
import socket
import socketserver
import ssl
import threading
import time

import pytest

from mmrope.preprocess import access as door
from mmrope.preprocess.access import Access, fetch, resolve
from mmrope.preprocess.errors import MediaError

CAT = bytes(range(256)) * 40
PRIVATE = [
    *("10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.8.9.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
    *("::1", "::", "fc00::1", "fd12::1", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1", "2001:db8::1", "2001:0:1::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a00:1::"),
]
PUBLIC = ["8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]


def http_ok(body=CAT, *headers):
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *headers, b"", body])


def moved(url, status=302):
    return f"HTTP/1.1 {status} Moved\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()


def trickle(head, drop=b"x"):
    """The head at once, then one drop at a time; more than any test waits for."""
    yield head
    for _ in range(500):
        yield drop
        time.sleep(0.02)


class Server(socketserver.ThreadingTCPServer):
    """Answers of bytes, or of pieces of them, by path. It notes each connection and each request."""

    allow_reuse_address = True
    daemon_threads = False  # server_close waits for them

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), None)
        self.answers, self.connections, self.requests, self.ended = answers, 0, [], False
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.host}"

    def finish_request(self, request, client_address):
        self.connections += 1
        head = b""
        while b"\r\n\r\n" not in head and (piece := request.recv(4096)):
            head += piece
        self.requests.append(head.decode("latin-1"))
        path = self.requests[-1].split()[1] if head.startswith(b"GET ") else ""
        answer = self.answers.get(path, self.answers.get("*", b"HTTP/1.1 404 Not Found\r\n\r\n"))
        with contextlib.suppress(OSError):  # whoever asked has hung up
            for piece in [answer] if isinstance(answer, bytes) else answer:
                request.sendall(piece)
                if self.ended:
                    break

    def shutdown(self):
        self.ended = True
        super().shutdown()


@pytest.fixture
def serve():
    """A function that starts a server on loopback; all are ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(answers):
            server = Server(answers)
            stack.callback(server.server_close)
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return server

        yield start


def allow(*servers, **options):
    defaults = {"hosts": tuple(server.host for server in servers), "schemes": ("http",), "private_addresses": True}
    return Access(**(defaults | options))


@pytest.fixture
def names(monkeypatch):
    """A function that says which addresses names have, each time anew; it returns the list of names looked up."""

    def know(table):
        looked_up = []

        def getaddrinfo(host, port, **options):
            looked_up.append(host)
            addresses = table[host].pop(0)
            return [(socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port)) for a in addresses]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return looked_up

    return know


@contextlib.contextmanager
def within(seconds):
    start = time.monotonic()
    yield
    assert time.monotonic() - start < seconds


def refused(message, source, access=None):
    with pytest.raises(MediaError, match=message) as caught:
        resolve(source, access)
    return str(caught.value)


# --- what may be asked of an Access -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hosts": "example.org"}, r"hosts must be a tuple of strings, got 'example.org'"),
        ({"hosts": (7,)}, r"hosts must be a tuple of strings, got \(7,\)"),
        ({"hosts": ("https://example.org",)}, r"hosts must be names such as .* got 'https://example.org'"),
        ({"hosts": ("*.example.org",)}, r"hosts must be names such as"),
        ({"hosts": ("",)}, r"hosts must be names such as .* got ''"),
        ({"schemes": "https"}, r"schemes must be a tuple of strings"),
        ({"schemes": ("ftp",)}, r"schemes must be some of http, https, got \('ftp',\)"),
        ({"schemes": ()}, r"schemes must be some of http, https"),
        ({"seconds": 0}, r"seconds must be above 0 and at most 86400, a day, got 0"),
        ({"seconds": -1.0}, r"seconds must be above 0"),
        ({"seconds": "30"}, r"seconds must be above 0 and at most 86400, a day, got '30'"),
        ({"seconds": float("nan")}, r"seconds must be above 0"),
        ({"seconds": float("inf")}, r"seconds must be above 0"),
        ({"max_bytes": 0}, r"max_bytes must be a whole number, at least 1, got 0"),
        ({"max_bytes": 1e6}, r"max_bytes must be a whole number, at least 1, got 1000000.0"),
        ({"max_redirects": -1}, r"max_redirects must be a whole number, at least 0, got -1"),
        ({"root": 0}, r"root must be a folder, got '0'"),
        ({"root": "no such folder"}, r"root must be a folder, got 'no such folder'"),
    ],
)
def test_fields_that_mean_nothing_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Access(**fields)


def test_hosts_are_written_in_any_case_and_access_is_hashable():
    assert Access(hosts=["Images.Example.org"]).hosts == ("images.example.org",)
    assert hash(Access()) == hash(Access(schemes=["HTTPS"]))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    """inside/cat.png, inside/deep/cat.png, outside.png, inside-out/cat.png; the working directory is their folder."""
    for path in ("inside/cat.png", "inside/deep/cat.png", "outside.png", "inside-out/cat.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(CAT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_any_path_is_given_as_its_real_path(home):
    real = os.path.realpath(home / "inside/cat.png")
    for source in ("inside/cat.png", home / "inside/cat.png", str(home / "inside/deep/../cat.png")):
        assert resolve(source) == real
        assert isinstance(resolve(source), str)
    (home / "link.png").symlink_to("inside/cat.png")
    assert resolve("link.png") == real


def test_what_needs_no_path_is_given_as_it_is(tmp_path):
    for source in (CAT, bytearray(CAT), memoryview(CAT)):
        assert resolve(source) == CAT
        assert type(resolve(source)) is bytes
    file = io.BytesIO(CAT)
    assert resolve(file, Access(root=tmp_path)) is file


@pytest.mark.parametrize("root", ["inside", "./inside/deep/..", "link"])
def test_root_keeps_paths_inside(home, root):
    (home / "link").symlink_to("inside")
    (home / "inside/ok.png").symlink_to("deep/cat.png")
    (home / "inside/out.png").symlink_to("../outside.png")
    (home / "inside/up").symlink_to("..")
    access = Access(root=root)
    for path in ("inside/cat.png", "inside/deep/../cat.png", "inside/ok.png", "link/cat.png", "outside/../inside/cat.png"):
        for source in (path, home / path):
            assert resolve(source, access).startswith(os.path.realpath("inside") + os.sep)
    for path in (
        *("outside.png", "inside/../outside.png", "inside/deep/../../outside.png", "inside-out/cat.png", "missing.png"),
        *("inside/out.png", "inside/up/outside.png", "link/../outside.png", "/dev/null", "/", "."),
    ):
        for source in (path, home / path):
            refused(
                rf"{re.escape(str(source))} is not inside {re.escape(root)}, the only folder that may be read", source, access
            )


def test_root_of_everything_and_pathlib_roots(home):
    assert resolve("inside/cat.png", Access(root="/")) == resolve("inside/cat.png", Access(root=home))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("missing.png", r"^missing.png: no such file$"),
        ("outside.png/cat.png", r"^outside.png/cat.png: no such file$"),
        ("inside", r"^inside is a folder, not a file$"),
        ("cat\0.png", r"^'cat\\x00.png' is not a path: it has a NUL byte in it"),
        ("", r"^'' is not a path: it is empty"),
        ("\ud800.png", r"'\\ud800.png' cannot be opened: .*surrogates"),
        ("x" * 5000, r"cannot be opened: .*name too long"),
        ("loop", r"'loop' cannot be opened: .*symbolic links"),
        ("/dev/null", r"/dev/null is not a regular file, but a pipe, device or socket"),
        (7, r"cannot open a int; give a path, bytes, a binary file, or a URL that is allowed"),
        (None, r"cannot open a NoneType"),
        (io.StringIO("cat"), r"is open as text; open it with mode 'rb'"),
    ],
)
@pytest.mark.parametrize("root", [None, "/"])
def test_what_is_no_file_is_refused(home, source, message, root):
    (home / "loop").symlink_to("loop")
    refused(message, source, Access(root=root))


def test_pipes_and_sockets_are_refused_at_once(home):
    os.mkfifo("pipe")
    with within(3):
        refused(r"pipe is not a regular file, but a pipe, device or socket; give its content as bytes", "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        refused(r"socket is not a regular file", "socket")


# --- data URLs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["data:image/png;base64", "data:;base64", "DATA:image/svg+xml;charset=utf-8;Base64"])
def test_data_urls_are_their_bytes_though_urls_are_off(head):
    for length in (0, 1, 2, 3, 1000):
        assert resolve(f"{head},{base64.b64encode(CAT[:length]).decode()}", Access(max_bytes=1000)) == CAT[:length]
    assert resolve(f"{head},Y2%2BF\ncw%3D%3D") == base64.b64decode("Y2+Fcw==")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("data:image/png;base64,cat!", r"data URL of 26 characters is not base64"),
        ("data:image/png;base64,Y2F0c", r"is not base64 .* was it cut short"),
        ("data:image/png;base64,Y2é0", r"is not base64"),
        ("data:image/png,cat", r"is not of the form data:image/png;base64,"),
        ("data:", r"is not of the form"),
        (
            "data:;base64," + base64.b64encode(bytes(1001)).decode(),
            r"holds 1001 bytes, the limit is 1000; raise it with Access\(max_bytes",
        ),
        ("data:;base64," + base64.b64encode(bytes(10**6)).decode(), r"holds 1000000 bytes"),
    ],
)
def test_data_urls_that_are_refused(source, message):
    assert len(refused(message, source, Access(max_bytes=1000))) < 200


# --- which URLs are asked ---------------------------------------------------------------------------------------------


def test_urls_are_off_by_default(serve):
    server = serve({"*": http_ok()})
    url = f"{server.url}/cat.png"
    for access in (None, Access(), Access(private_addresses=True, schemes=("http",))):
        refused(
            rf"^{url} is a URL, and URLs are off: download it first, or allow its host with Access\(hosts=\(\.\.\.,\)\)$",
            url,
            access,
        )
    assert not server.connections


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://other.example.org/cat.png", r"the host other.example.org is not allowed; .* Access\(hosts"),
        ("https://example.org.example/cat.png", r"the host example.org.example is not allowed"),
        ("https://example.org./cat.png", r"the host example.org. is not allowed"),
        ("https://example.org:8443/cat.png", r"the host example.org:8443 is not allowed"),
        ("https://localhost/cat.png", r"the host localhost is not allowed"),
        ("https://[::1]/cat.png", r"the host \[::1\] is not allowed"),
        ("http://example.org/cat.png", r"http://example.org/cat.png is http, and allowed are https"),
        ("ftp://example.org/cat.png", r"ftp://example.org/cat.png is a URL of a scheme that is never opened"),
        (" file:///etc/hostname", r"file://\.\.\. is a URL of a scheme that is never opened"),
        ("https://example.org/my cat.png", r"is not a URL of the form https://host/path"),
        ("https://example.org/cat\r\nX-Header: 1", r"is not a URL of the form"),
        ("https://example.org\\@localhost/cat.png", r"has credentials|is not a URL of the form"),
        ("https://example.org\t/cat.png", r"is not a URL of the form"),
        ("https://example.org:99999/", r"is not a URL of the form"),
        ("https://example.org:0/", r"is not a URL of the form"),
        ("https://[::1/cat.png", r"is not a URL of the form"),
        ("https:///cat.png", r"is not a URL of the form"),
        ("https://example.org/\ud800", r"is not a URL of the form"),
        ("https://\u0435xample.org/", r"is not a URL of the form"),
    ],
)
def test_urls_that_are_not_asked(names, url, message):
    """Refused before any name is looked up: the fake resolver knows none."""
    looked_up = names({})
    refused(message, url, Access(hosts=("example.org",)))
    assert not looked_up


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hunter2@example.org/",
        "https://hunter2@example.org/",
        "https://user:hunter2@localhost?a=b",
        "https://user:hun?ter2@example.org/",
        "https://user:hun/ter2@example.org/",
    ],
)
def test_credentials_are_refused_and_not_shown(names, url):
    names({})
    message = refused(r"^https://\.\.\. (has credentials in it|is not a URL of the form)", url, Access(hosts=("example.org",)))
    assert "ter2" not in message


def test_a_pathlike_is_no_way_around(serve, names):
    looked_up = names({})

    class Sneaky:
        def __fspath__(self):
            return "https://example.org/cat.png"

    refused(r"is a URL, and URLs are off", Sneaky())
    assert not looked_up


def test_a_name_is_allowed_at_the_port_of_its_scheme_or_at_the_port_that_is_stated(names):
    """Allowed ones come as far as their name being looked up."""
    for hosts in (("example.org",), ("example.org:443",)):
        names({"example.org": [["10.0.0.1"], ["10.0.0.1"]]})
        refused(r"the host has the address 10.0.0.1", "https://EXAMPLE.org/cat.png", Access(hosts=hosts))
        refused(r"the host has the address 10.0.0.1", "https://example.org:443/cat.png", Access(hosts=hosts))
    refused(r"the host example.org:80 is not allowed", "https://example.org:80/", Access(hosts=("example.org",)))


# --- which addresses are asked ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_of_a_private_address_is_refused(names, address):
    names({"example.org": [[address]]})
    with within(3):
        refused(
            rf"^https://example.org/: the host has the address {re.escape(address)}, which is not of the public internet",
            "https://example.org/",
            Access(hosts=("example.org",)),
        )


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known_as_such(address):
    assert door._is_public(address)


@pytest.mark.parametrize("addresses", [["8.8.8.8", "10.0.0.1"], ["10.0.0.1", "8.8.8.8"], ["8.8.8.8", "::1"]])
def test_one_private_address_among_public_ones_is_enough_to_refuse(names, monkeypatch, addresses):
    names({"example.org": [addresses]})
    monkeypatch.setattr(socket, "socket", None)  # nothing may be connected to
    refused(r"which is not of the public internet", "https://example.org/", Access(hosts=("example.org",)))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0"])
def test_loopback_is_refused_by_its_address_though_its_name_is_allowed(serve, host):
    server = serve({"*": http_ok()})
    name = f"{host}:{server.server_address[1]}"
    refused(
        r"the host has the address (127.0.0.1|::1|0.0.0.0), .* Access\(private_addresses=True\)",
        f"http://{name}/",
        allow(hosts=(name,), private_addresses=False),
    )
    assert not server.connections


def test_a_name_is_looked_up_once_so_that_it_cannot_change(serve, names, monkeypatch):
    """DNS rebinding: the first answer passes the check, a second one would be another address."""
    server = serve({"*": http_ok()})
    looked_up = names({"example.org": [["127.0.0.1"], ["127.0.0.2"], ["127.0.0.2"]]})
    monkeypatch.setattr(door, "_is_public", {"127.0.0.1": True, "127.0.0.2": False}.__getitem__)
    name = f"example.org:{server.server_address[1]}"
    assert fetch(f"http://{name}/cat.png", allow(hosts=(name,), private_addresses=False)) == CAT
    assert looked_up == ["example.org"]
    assert f"\r\nHost: {name}\r\n" in server.requests[0]


def test_the_next_address_is_tried_when_one_does_not_answer(serve, names):
    server = serve({"*": http_ok()})
    names({"example.org": [["127.0.0.2", "127.0.0.1"]], "localhost": [["127.0.0.2"]]})
    port = server.server_address[1]
    access = allow(hosts=(f"example.org:{port}", f"localhost:{port}"))
    assert fetch(f"http://example.org:{port}/", access) == CAT
    refused(
        rf"http://localhost:{port}/ could not be asked: .*refused; try again, or download it first",
        f"http://localhost:{port}/",
        access,
    )


def test_ipv6_addresses_are_written_in_brackets_and_looked_up_without(serve, names):
    server = serve({"*": http_ok()})
    looked_up = names({"::1": [["127.0.0.1"]]})
    name = f"[::1]:{server.server_address[1]}"
    assert fetch(f"http://{name}/", allow(hosts=(name,))) == CAT
    assert looked_up == ["::1"]
    assert f"\r\nHost: {name}\r\n" in server.requests[0]


@pytest.mark.parametrize("error", [socket.gaierror(-2, "Name or service not known"), UnicodeError("label too long")])
def test_a_name_without_address(monkeypatch, error):
    def getaddrinfo(*_, **__):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    refused(
        r"https://example.org/: no address of the host is known \(.*\); is its name right",
        "https://example.org/",
        Access(hosts=("example.org",)),
    )


# --- what comes back --------------------------------------------------------------------------------------------------


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        http_ok(),
        b"HTTP/1.0 200 OK\r\n\r\n" + CAT,
        CHUNKED + b"100\r\n" + CAT[:256] + b"\r\n%x\r\n" % (len(CAT) - 256) + CAT[256:] + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + http_ok(),
        http_ok(CAT, b"Content-Encoding: identity"),
        http_ok(CAT, b"Set-Cookie: a=b"),
    ],
)
def test_the_bytes_are_those_of_the_server(serve, answer):
    server = serve({"/cat.png": answer})
    assert resolve(f"{server.url}/cat.png", allow(server, max_bytes=len(CAT))) == CAT


@pytest.mark.parametrize(("end", "target"), [("", "/"), ("/", "/"), ("?a=b", "/?a=b"), ("#top", "/")])
def test_a_url_without_path_asks_for_the_root(serve, end, target):
    server = serve({"*": http_ok()})
    assert fetch(server.url + end, allow(server)) == CAT
    assert server.requests[0].startswith(f"GET {target} HTTP/1.1\r\n")


def test_an_empty_body_is_no_bytes(serve):
    server = serve({"*": http_ok(b"")})
    assert fetch(server.url, allow(server)) == b""


def test_what_is_sent_is_plain_and_holds_nothing_of_this_machine(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    server = serve({"*": http_ok()})
    fetch(f"{server.url}/my%20cat/ä?size=1&name=ö#top", allow(server))
    assert server.requests == [
        f"GET /my%20cat/%C3%A4?size=1&name=%C3%B6 HTTP/1.1\r\nHost: {server.host}\r\nUser-Agent: mmrope\r\n"
        "Accept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\n\r\n", r"the server answered 404 Not Found, not 200 OK; is the address right"),
        (b"HTTP/1.1 500 <script>\r\n\r\n", r"the server answered 500 Internal Server Error, not"),
        (b"HTTP/1.1 799 X\r\n\r\n", r"the server answered 799, not"),
        (b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx", r"answered 206 Partial Content"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", r"answered 204"),
        (http_ok(CAT, b"Content-Encoding: gzip"), r"the server sends it as 'gzip', though asked for plain bytes"),
        (http_ok()[:-1], rf"was cut short: {len(CAT) - 1} of {len(CAT)} bytes came"),
        (http_ok()[: -len(CAT)], rf"was cut short: 0 of {len(CAT)} bytes came|IncompleteRead"),
        (CHUNKED + b"100\r\n" + CAT[:100], r"was cut short or is not HTTP \(IncompleteRead\)"),
        (CHUNKED + b"100\r\n" + CAT[:256] + b"\r\n", r"was cut short or is not HTTP \(IncompleteRead\)"),
        (CHUNKED + b"cat\xff\r\n", r"was cut short or is not HTTP \(IncompleteRead\)"),
        (b"<html></html>\r\n\r\n", r"was cut short or is not HTTP \(BadStatusLine\)"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000 + b"\r\n\r\n", r"was cut short or is not HTTP \(LineTooLong\)"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: x\r\n" * 200 + b"\r\n", r"was cut short or is not HTTP \(HTTPException\)"),
        (b"", r"could not be asked: Remote end closed connection without response; try again"),
    ],
)
def test_answers_that_are_refused(serve, answer, message):
    server = serve({"*": answer})
    refused(rf"^{server.url}/cat.png:? .*({message})", f"{server.url}/cat.png", allow(server))


@pytest.mark.parametrize("query", ["?token=hunter2", "?hunter2", "#hunter2", "?a=user@hunter2/hunter2#b"])
def test_the_query_is_sent_but_not_shown(serve, query):
    server = serve({"/moved" + query.split("#")[0]: moved("https://localhost/x?hunter2")})
    message = refused(rf"{server.url}/cat.png: the server answered 404", f"{server.url}/cat.png{query}", allow(server))
    message += refused(r"is https, and allowed are http", f"{server.url}/moved{query}", allow(server))
    assert query.split("#")[0] in server.requests[0]
    assert "hunter2" not in message


# --- limits -----------------------------------------------------------------------------------------------------------


def test_a_stated_length_over_the_limit_is_refused_before_the_body(serve):
    server = serve({"*": trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")})
    with within(3):
        refused(
            rf"{server.url}/cat.png has 1000000000 bytes, the limit is 50000000; raise it with Access\(max_bytes=",
            f"{server.url}/cat.png",
            allow(server),
        )


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.0 200 OK\r\n\r\n" + CAT,
        b"HTTP/1.0 200 OK\r\nContent-Length: cat\r\n\r\n" + CAT,
        b"HTTP/1.0 200 OK\r\nContent-Length: -1\r\n\r\n" + CAT,
        CHUNKED + b"%x\r\n" % len(CAT) + CAT + b"\r\n0\r\n\r\n",
        CHUNKED + b"ffffffffffff\r\n" + CAT,
    ],
)
def test_a_body_over_the_limit_is_cut_though_no_length_is_stated(serve, answer):
    server = serve({"*": answer})
    limit = len(CAT) - 1
    refused(rf"has more than {limit} bytes, the limit is {limit}", f"{server.url}/cat.png", allow(server, max_bytes=limit))


def test_a_body_without_end_is_cut(serve):
    server = serve({"*": trickle(b"HTTP/1.0 200 OK\r\n\r\n", bytes(10**6))})
    with within(3):
        refused(r"has more than 3000000 bytes", f"{server.url}/cat.png", allow(server, max_bytes=3_000_000))


@pytest.mark.parametrize(
    "answer",
    [
        trickle(b"", b""),
        trickle(b"HTTP/1.1 200 OK\r\nX: "),
        trickle(b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"),
        trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n"),
        trickle(b"HTTP/1.0 200 OK\r\n\r\n"),
        trickle(CHUNKED, b"1\r\nx\r\n"),
        trickle(CHUNKED + b"0\r\n", b"X: x\r\n"),
    ],
    ids=["silence", "headers", "continue", "body", "endless", "chunks", "trailers"],
)
def test_the_deadline_holds_against_servers_that_trickle(serve, answer):
    server = serve({"*": answer})
    with within(3):
        refused(
            rf"^{server.url}/cat.png took longer than 0.3 s; raise Access\(seconds=\.\.\.\), or download it first",
            f"{server.url}/cat.png",
            allow(server, seconds=0.3),
        )


def test_the_deadline_is_one_for_all_redirects(serve):
    def slowly(to):
        time.sleep(0.2)
        yield moved(to)

    server = serve({f"/{n}": slowly(f"/{n + 1}") for n in range(9)})
    with within(3):
        refused(r"took longer than 0.5 s", f"{server.url}/0", allow(server, seconds=0.5, max_redirects=9))
    assert len(server.requests) < 5


@contextlib.contextmanager
def silent(host, port=0):
    """A listener whose queue is full, by its port: the system answers nothing to a further connection."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_the_deadline_holds_while_connecting():
    with silent("127.0.0.1") as port, within(3):
        refused(r"took longer than 0.5 s", f"http://127.0.0.1:{port}/", allow(hosts=(f"127.0.0.1:{port}",), seconds=0.5))


def test_an_address_that_is_silent_leaves_time_for_the_next(serve, names):
    server = serve({"*": http_ok()})
    names({"example.org": [["127.0.0.2", "127.0.0.1"]]})
    with silent("127.0.0.2", server.server_address[1]) as port:
        assert fetch(f"http://example.org:{port}/", allow(hosts=(f"example.org:{port}",), seconds=0.8)) == CAT


def test_a_timeout_of_the_system_is_not_said_to_be_the_deadline(monkeypatch):
    def connect(self, address):
        raise TimeoutError(errno.ETIMEDOUT, "Connection timed out")

    monkeypatch.setattr(socket.socket, "connect", connect)
    refused(r"could not be asked: .*Connection timed out; try again", "http://127.0.0.1:9/", allow(hosts=("127.0.0.1:9",)))


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("to", ["/cat.png", "cat.png", "{url}/cat.png", "//{host}/cat.png", "/cat.png#top"])
def test_redirects_are_followed(serve, status, to):
    answers = {"/cat.png": http_ok()}
    server = serve(answers)
    answers["/moved"] = moved(to.format(url=server.url, host=server.host), status)
    assert fetch(f"{server.url}/moved", allow(server)) == CAT


@pytest.mark.parametrize("to", ["/my cat \xe4", "/my%20cat%20%E4"])
def test_a_redirect_to_raw_bytes_asks_for_those(serve, to):
    server = serve(
        {"/moved": b"HTTP/1.1 302 Moved\r\nLocation: " + to.encode("latin-1") + b"\r\n\r\n", "/my%20cat%20%E4": http_ok()}
    )
    assert fetch(f"{server.url}/moved", allow(server)) == CAT


def test_other_redirects_are_answers_like_any_other(serve):
    server = serve({"*": moved("/cat.png", 300)})
    refused(r"the server answered 300 Multiple Choices", server.url, allow(server))


def test_a_redirect_to_another_host_is_refused_and_it_is_never_asked(serve):
    other = serve({"*": http_ok()})
    server = serve({"*": moved(f"{other.url}/cat.png")})
    refused(
        rf"{other.url}/cat.png \(redirected from {server.url}/moved\): the host {other.host} is not allowed",
        f"{server.url}/moved",
        allow(server),
    )
    assert not other.connections
    assert fetch(f"{server.url}/moved", allow(server, other)) == CAT


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("file:///etc/hostname", r"file:///etc/hostname \(redirected from .*\) is a URL of a scheme that is never opened"),
        ("data:image/png;base64,Y2F0", r"is a URL of a scheme that is never opened"),
        ("https://127.0.0.1/", r"is https, and allowed are http"),
        ("http://user:hunter2@127.0.0.1/", r"has credentials"),
        ("http://[::1/", r"redirects to what is not a URL|is not a URL of the form"),
        ("http:///x", r"answered 404|is not a URL of the form"),
    ],
)
def test_a_redirect_is_checked_like_the_first_url(serve, to, message):
    server = serve({"/moved": moved(to)})
    assert "hunter2" not in refused(message, f"{server.url}/moved", allow(server))


def test_a_redirect_to_a_private_address_is_refused_and_it_is_never_asked(serve, names, monkeypatch):
    """example.org stands for a public host, though it is on loopback here; localhost is what it is."""
    inside = serve({"*": http_ok()})
    inside_name = f"localhost:{inside.server_address[1]}"
    server = serve({"*": moved(f"http://{inside_name}/secret")})
    server_name = f"example.org:{server.server_address[1]}"
    names({"example.org": [["127.0.0.1"]], "localhost": [["127.0.0.2"]]})
    is_public = door._is_public
    monkeypatch.setattr(door, "_is_public", lambda address: address == "127.0.0.1" or is_public(address))
    refused(
        r"localhost:\d+/secret \(redirected from .*example.org.*\): the host has the address 127.0.0.2",
        f"http://{server_name}/moved",
        allow(hosts=(server_name, inside_name), private_addresses=False),
    )
    assert server.connections == 1
    assert not inside.connections


def test_redirects_have_an_end(serve):
    loop = serve({"/a": moved("/b"), "/b": moved("/a")})
    refused(rf"{loop.url}/a redirects more than 5 times", f"{loop.url}/a", allow(loop))
    assert len(loop.requests) == 6
    stairs = serve({f"/{n}": moved(f"/{n + 1}") for n in range(3)} | {"/3": http_ok()})
    assert fetch(f"{stairs.url}/0", allow(stairs, max_redirects=3)) == CAT
    refused(
        r"redirects more than 2 times; give the address that it leads to", f"{stairs.url}/0", allow(stairs, max_redirects=2)
    )
    refused(r"redirects more than 0 times", f"{stairs.url}/2", allow(stairs, max_redirects=0))
    nowhere = serve({"*": b"HTTP/1.1 302 Moved\r\n\r\n"})
    refused(r"redirects more than 5 times", nowhere.url, allow(nowhere))


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_https_checks_certificates_for_the_name_of_the_host(serve, names, monkeypatch):
    """The handshake is watched, not made: no key is kept for a test."""
    server = serve({"*": http_ok()})
    port = server.server_address[1]
    names({"example.org": [["127.0.0.1"]]})
    seen = []

    def wrap_socket(self, sock, *, server_hostname):
        seen.append((server_hostname, self.verify_mode, self.check_hostname))
        return sock

    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", wrap_socket)
    name = f"example.org:{port}"
    assert fetch(f"https://{name}/", Access(hosts=(name,), private_addresses=True)) == CAT
    assert seen == [("example.org", ssl.CERT_REQUIRED, True)]


def test_a_redirect_may_not_leave_https(serve, monkeypatch):
    other = serve({"*": http_ok()})
    server = serve({"*": moved(f"{other.url}/cat.png")})
    monkeypatch.setattr(ssl.SSLContext, "wrap_socket", lambda self, sock, *, server_hostname: sock)
    access = allow(server, other, schemes=("http", "https"))
    refused(r"is http, and a redirect may not leave https", f"https://{server.host}/", access)
    assert not other.connections
    assert fetch(f"http://{server.host}/", access) == CAT


def test_a_server_that_does_not_speak_tls_is_refused(serve):
    server = serve({"*": http_ok()})
    answered = []
    server.finish_request = lambda request, _: answered.append(request.recv(1) and request.sendall(http_ok()))
    refused(r"could not be asked: .*SSL", f"https://{server.host}/", allow(server, schemes=("https",)))


def test_the_deadline_holds_against_a_handshake_that_does_not_end(serve):
    server = serve({"*": trickle(b"", b"")})
    with within(3):
        refused(r"took longer than 0.5 s", f"https://{server.host}/", allow(server, schemes=("https",), seconds=0.5))
