"""Which files and URLs may be opened: the door for names that strangers write.

source -> resolve -> a path that was checked, or bytes
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import ipaddress
import os
import re
import socket
import ssl
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urljoin

from mmrope.preprocess.errors import MediaError

_PORTS = {"http": 80, "https": 443}
_HOST = r"(?:[a-z0-9_][a-z0-9_.-]*|\[[0-9a-f:.]+\])"
_TEXT = r"[^?#\\\x00-\x20\x7f\ud800-\udfff]"
# stricter than any URL parser, so that no two of them can read the same URL differently
_URL = re.compile(
    rf"(?P<place>(?P<scheme>[a-z][a-z0-9+.-]+)://(?P<host>{_HOST})?(?::(?P<port>[0-9]{{1,5}}))?(?P<path>/{_TEXT}*)?)"
    rf"(?P<query>\?(?:{_TEXT}|\?)*)?(?:#.*)?",
    re.IGNORECASE | re.ASCII,
)
_UNQUOTED = "%/:=&?~#+!$,;'@()*[]"  # what has a meaning in URLs
_REDIRECTS = (301, 302, 303, 307, 308)
_UNICAST = ipaddress.ip_network("2000::/3")  # all IPv6 addresses of the public internet
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_DAY = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class Access:
    """Which files may be opened. By default every path that the process can read, and no URL.

    For sources that strangers name: `Access(root="uploads")`, and `Access(hosts=("images.example.org",))` to download.

    Raises:
        ValueError: a field that means nothing, such as a root that is no folder, or hosts with a scheme or a wildcard.

    Example:
        >>> from mmrope import MediaError
        >>> from mmrope.preprocess import Access, load_image
        >>> try:
        ...     load_image("https://example.org/cat.jpg", access=Access(hosts=("images.example.org",)))
        ... except MediaError as error:
        ...     print(error)
        https://example.org/cat.jpg: the host example.org is not allowed; download it first, or add it to Access(hosts=...)
    """

    root: str | Path | None = None
    """Paths must lie inside this folder after symlinks and '..' are resolved. Relative paths start at the working directory, as
    ever. Who may write into the folder can still swap a file between the check and the opening of it."""
    hosts: tuple[str, ...] = ()
    """Hosts that URLs may name, exactly: "images.example.org", at its scheme's own port, or "images.example.org:8080".
    Empty: URLs are off."""
    schemes: tuple[str, ...] = ("https",)
    private_addresses: bool = False
    """Whether a host may have loopback, private, link-local and other addresses that are not of the public internet."""
    max_bytes: int = 50_000_000
    """Of a download, or of what a data URL holds."""
    seconds: float = 30.0
    """For a download in all, redirects included. Looking a host's address up counts, but is not cut short."""
    max_redirects: int = 5

    def __post_init__(self) -> None:
        if self.root is not None and not (isinstance(self.root, (str, os.PathLike)) and os.path.isdir(self.root)):
            raise ValueError(f"root must be a folder, got {str(self.root)!r}")
        for name in ("hosts", "schemes"):
            value = getattr(self, name)
            if not isinstance(value, (tuple, list, set, frozenset)) or not all(isinstance(item, str) for item in value):
                raise ValueError(f"{name} must be a tuple of strings, got {value!r}")
            object.__setattr__(self, name, tuple(item.lower() for item in value))
        for host in self.hosts:
            if not re.fullmatch(rf"{_HOST}(:[0-9]{{1,5}})?", host, re.ASCII):
                raise ValueError(f"hosts must be names such as 'images.example.org' or 'localhost:8080', got {host!r}")
        if not self.schemes or not set(self.schemes) <= set(_PORTS):
            raise ValueError(f"schemes must be some of {', '.join(_PORTS)}, got {self.schemes!r}")
        if not isinstance(self.seconds, (int, float)) or not 0 < self.seconds <= _DAY:
            raise ValueError(f"seconds must be above 0 and at most {_DAY:g}, a day, got {self.seconds!r}")
        for name, least in (("max_bytes", 1), ("max_redirects", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number, at least {least}, got {value!r}")


def resolve(source: Any, access: Access | None = None) -> Any:
    """What a source is opened as: a real path (str), bytes, or the binary file that was given.

    Args:
        source: path, URL (file, http, https, or data with base64), bytes, or binary file object.
        access: which of them may be opened; None for `Access()`.

    Raises:
        MediaError: missing, outside `access.root`, not a regular file, a URL that is not allowed or cannot be downloaded.
    """
    access = access or Access()
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        if name[:5].lower() == "data:":
            return _data(name, access)
        if name[:7].lower() == "file://":
            return _path(_local(name), access)
        scheme = re.match(r"\s*([a-z][a-z0-9+.-]+)://", name, re.IGNORECASE | re.ASCII)
        return fetch(name, access) if scheme else _path(name, access)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    if isinstance(source, io.TextIOBase):
        raise MediaError(f"{getattr(source, 'name', 'file object')} is open as text; open it with mode 'rb'")
    if hasattr(source, "read"):
        return source
    raise MediaError(f"cannot open a {type(source).__name__}; give a path, bytes, a binary file, or a URL that is allowed")


def fetch(url: str, access: Access) -> bytes:
    """The bytes behind a URL, if `access` allows it and every URL that it redirects to.

    A host is looked up once, and the addresses that were checked are the ones connected to. No proxies, cookies, credentials.

    Raises:
        MediaError: a URL that is not allowed, an answer other than 200, or one that is too large, too slow, or cut short.
    """
    deadline = time.monotonic() + access.seconds
    place = _place(url, access)
    first = place.name
    for _ in range(access.max_redirects + 1):
        try:
            answer = _ask(place, access, deadline)
        except OSError as error:
            late = isinstance(error, TimeoutError) and error.errno is None  # of this deadline, not of the system's
            slow = f"took longer than {access.seconds:g} s; raise Access(seconds=...)"
            what = slow if late else f"could not be asked: {error}; try again"
            raise MediaError(f"{place.name} {what}, or download it first") from error
        except http.client.HTTPException as error:
            what = f"the answer was cut short or is not HTTP ({type(error).__name__})"
            raise MediaError(f"{place.name}: {what}; try again, or download it first") from error
        if isinstance(answer, bytes):
            return answer
        place = _place(answer, access, f" (redirected from {first})", was_https=place.scheme == "https")
    raise MediaError(f"{first} redirects more than {access.max_redirects} times; give the address that it leads to")


class _Place(NamedTuple):
    """A URL that may be asked, taken apart."""

    url: str
    name: str  # in messages: without its query, which may hold secrets
    scheme: str
    host: str
    port: int
    host_header: str
    target: str


def _place(url: str, access: Access, origin: str = "", *, was_https: bool = False) -> _Place:
    match = _URL.fullmatch(url)
    # of a malformed URL nothing is shown: what looks like its path may be half of a password
    name = (match["place"][:300] if match else url.strip().partition(":")[0][:20] + "://...") + origin
    scheme = (match["scheme"] if match else url.strip().partition(":")[0]).lower()
    if scheme not in _PORTS:
        raise MediaError(f"{name} is a URL of a scheme that is never opened; give a path without a scheme, or an https URL")
    if not access.hosts:
        raise MediaError(f"{name} is a URL, and URLs are off: download it first, or allow its host with Access(hosts=(...,))")
    if "@" in re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]:
        raise MediaError(f"{name} has credentials in it (user:password@), which are never sent; download it first")
    port = int(match["port"] or _PORTS[scheme]) if match else 0
    if not match or not match["host"] or not 0 < port < 65536:
        raise MediaError(f"{name} is not a URL of the form https://host/path, in which spaces are written %20")
    if scheme not in access.schemes or (was_https and scheme != "https"):
        why = "a redirect may not leave https" if was_https else f"allowed are {', '.join(access.schemes)}: Access(schemes=...)"
        raise MediaError(f"{name} is {scheme}, and {why}")
    host = match["host"].lower()
    host_header = host if port == _PORTS[scheme] else f"{host}:{port}"
    if not {host_header, f"{host}:{port}"} & set(access.hosts):
        raise MediaError(f"{name}: the host {host_header} is not allowed; download it first, or add it to Access(hosts=...)")
    target = quote((match["path"] or "/") + (match["query"] or ""), safe=_UNQUOTED)
    return _Place(url, name, scheme, host.strip("[]"), port, host_header, target)


def _ask(place: _Place, access: Access, deadline: float) -> bytes | str:
    """One request: the body, or the URL that it redirects to."""
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(_connect(place, access, deadline))
        if place.scheme == "https":
            context = ssl.create_default_context()
            connection.settimeout(_left(deadline))
            connection = stack.enter_context(context.wrap_socket(connection, server_hostname=place.host))
        request = f"GET {place.target} HTTP/1.1\r\nHost: {place.host_header}\r\nUser-Agent: mmrope\r\n"
        connection.settimeout(_left(deadline))
        connection.sendall(f"{request}Accept: */*\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode("ascii"))
        timed: Any = _Timed(connection, deadline)
        response = stack.enter_context(http.client.HTTPResponse(timed, method="GET"))
        response.begin()
        if response.status not in _REDIRECTS:
            return _body(response, place.name, access)
        try:  # headers are read as Latin-1: so their bytes come out as they were
            return urljoin(place.url, quote(response.headers["Location"] or "", safe=_UNQUOTED, encoding="latin-1"))
        except ValueError:
            raise MediaError(f"{place.name} redirects to what is not a URL; give the address that it leads to") from None


def _connect(place: _Place, access: Access, deadline: float) -> socket.socket:
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise MediaError(f"{place.name}: no address of the host is known ({error}); is its name right?") from error
    for *_, address in found:
        if not access.private_addresses and not _is_public(str(address[0])):
            raise MediaError(
                f"{place.name}: the host has the address {address[0]}, which is not of the public internet; "
                "if it is yours, allow it with Access(private_addresses=True)"
            )
    failure = OSError("the host has no address")
    for n, (family, kind, protocol, _, address) in enumerate(found):
        with contextlib.ExitStack() as stack:
            try:
                connection = stack.enter_context(socket.socket(family, kind, protocol))
                connection.settimeout(_left(deadline) / (len(found) - n))  # a dead address leaves time for the others
                connection.connect(address)
                stack.pop_all()  # it stays open
                return connection
            except OSError as error:
                failure = error
    raise failure


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(address.packed[12:])
        if inner is None and address not in _UNICAST:
            return False
        address = inner or address
    return address.is_global and not address.is_multicast


class _Timed(io.RawIOBase):
    """What a connection sends until the deadline. Each read waits for what is left, so trickling bytes gain no time."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection, self._deadline = connection, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._connection.settimeout(_left(self._deadline))
        return self._connection.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:  # all that http.client asks of a socket
        return io.BufferedReader(self)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the deadline has passed")
    return left


def _body(response: http.client.HTTPResponse, name: str, access: Access) -> bytes:
    if response.status != 200:
        status = f"{response.status} {http.client.responses.get(response.status, '')}".strip()
        raise MediaError(f"{name}: the server answered {status}, not 200 OK; is the address right, and open to all?")
    if (coding := response.headers.get("Content-Encoding", "identity").strip().lower()) not in ("", "identity"):
        raise MediaError(f"{name}: the server sends it as {coding[:20]!r}, though asked for plain bytes; download it first")
    size, body = response.length or 0, bytearray()
    while max(size, len(body)) <= access.max_bytes and (piece := response.read(min(2**16, access.max_bytes + 1 - len(body)))):
        body += piece
    if max(size, len(body)) > access.max_bytes:
        had = size or f"more than {access.max_bytes}"
        raise MediaError(f"{name} has {had} bytes, the limit is {access.max_bytes}; raise it with Access(max_bytes=...)")
    if len(body) < size:
        raise MediaError(f"{name} was cut short: {len(body)} of {size} bytes came; try again, or download it first")
    return bytes(body)


def _data(url: str, access: Access) -> bytes:
    name = f"data URL of {len(url)} characters"
    head, _, text = url.partition(",")
    if not head.lower().endswith(";base64"):
        raise MediaError(f"{name} is not of the form data:image/png;base64,...; give the bytes themselves")
    try:
        body = base64.b64decode("".join(unquote(text).split()), validate=True)
    except ValueError as error:
        raise MediaError(f"{name} is not base64 ({error}); was it cut short?") from error
    if len(body) > access.max_bytes:
        raise MediaError(
            f"{name} holds {len(body)} bytes, the limit is {access.max_bytes}; raise it with Access(max_bytes=...)"
        )
    return body


def _local(url: str) -> str:
    """The path of a file:// URL. It is taken as written, as qwen-vl-utils does; where there is no such file, percent signs
    are read as in other URLs."""
    name = url[7:]
    if name[:10].lower() == "localhost/" and not os.path.exists(name):
        name = name[9:]
    name = name[1:] if re.match(r"/[a-z]:[/\\]", name, re.IGNORECASE) else name  # of Windows: file:///C:/photo.jpg
    return name if "\0" in name or os.path.exists(name) else unquote(name)


def _path(name: str, access: Access) -> str:
    """The real path of a regular file. Fifos, devices and sockets are none: to open one can wait for ever."""
    if not name or "\0" in name:
        raise MediaError(f"{name!r} is not a path: it {'has a NUL byte in it' if name else 'is empty'}")
    try:
        real = os.path.realpath(name)
        if access.root is not None and not Path(real).is_relative_to(os.path.realpath(access.root)):
            raise MediaError(f"{name} is not inside {access.root}, the only folder that may be read: Access(root=...)")
        mode = os.stat(real).st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(f"{name}: no such file") from None
    except (OSError, UnicodeError) as error:
        raise MediaError(f"{name!r} cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise MediaError(f"{name} is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise MediaError(f"{name} is not a regular file, but a pipe, device or socket; give its content as bytes")
    return real
