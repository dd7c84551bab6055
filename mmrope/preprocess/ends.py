"""Whether a file ends where its container says: the heads of its pieces are read, and nothing is decoded.

Containers say it in different ways: a size in the head (AVI, Matroska, ASF, FLV), sizes of pieces one after the other (MP4),
a pointer to the footer (MXF), or pieces of one size (MPEG-TS). A live recording states no size of its own, but those of its
pieces: a cut within one is told, and a cut between two is not.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable
from typing import Any

from mmrope.preprocess.errors import MediaError

_HEAD, _TAIL = 1 << 16, 1 << 17  # bytes in which what is looked for stands


def missing_bytes(source: str | bytes, container: str) -> int:
    """How many bytes a file lacks at its end, at least; 0 where it is whole, or its container does not say.

    Args:
        source: an absolute path, or bytes.
        container: FFmpeg's name of its format.

    Example:
        >>> from mmrope.preprocess.ends import missing_bytes
        >>> avi = b"RIFF" + (20).to_bytes(4, "little") + b"AVI " + bytes(16)
        >>> missing_bytes(avi, "avi"), missing_bytes(avi[:-5], "avi")
        (0, 5)
    """
    ends = _ENDS.get(container)
    if ends is None:
        return 0
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            return max(ends(file, size) - size, 0)
    except OSError as error:
        raise MediaError(
            f"{source if isinstance(source, str) else 'a file'} cannot be read any more: {error.strerror}"
        ) from error


_MOST_PIECES = 1_000_000
"""Pieces of a file that are looked at; one of more is not asked whether it is whole."""


def _piece(file: Any, begin: int, size: int) -> bytes:
    end = file.seek(0, os.SEEK_END)
    if begin >= end:
        return b""
    file.seek(max(begin, 0))
    return file.read(size)


def _chain(file: Any, size: int, begin: int, extent: Callable[[bytes], int | None]) -> int:
    """Where pieces end that stand one after the other.

    Args:
        begin: where the first of them stands.
        extent: how long a piece is, its head included, by its first bytes: more than these where the file ends within the
            head; 0 where it does not say; None of what is no such piece, and so says nothing of those before it.
    """
    for _ in range(_MOST_PIECES):
        if begin >= size:
            return begin
        file.seek(begin)
        length = extent(file.read(25))  # the longest head is MXF's
        if length is None:
            return begin
        if not length:
            return size
        begin += length
    return size


def _riff(file: Any, size: int) -> int:
    """RIFF chunks one after the other (OpenDML); a recorder that was stopped leaves 0 or -1 for the size, and some count the
    head of 8 bytes twice."""
    end = 0
    while (head := _piece(file, end, 8))[:4] == b"RIFF" and len(head) == 8:
        length = int.from_bytes(head[4:], "little")
        if length in (0, 0xFFFFFFFF):
            return 0
        end += 8 + length
    return end - 8 if end == size + 8 else end


_BOXES = frozenset(
    (
        *(b"ftyp", b"moov", b"mdat", b"moof", b"mfra", b"sidx", b"styp", b"free", b"skip", b"wide", b"udta", b"uuid", b"meta"),
        *(b"pdin", b"emsg", b"prft", b"ssix", b"pnot"),
    )
)


def _boxes(file: Any, size: int) -> int:
    """The boxes of an MP4 (ISO/IEC 14496-12); the last may go to the end of the file. What stands behind them and is no box
    (line breaks of an upload, tags, a camera's trailer) says nothing."""

    def extent(head: bytes) -> int | None:
        name, length = head[4:8], int.from_bytes(head[:4], "big")
        if name not in _BOXES and not (0 < len(name) < 4 and any(box.startswith(name) for box in _BOXES)):
            return None
        if len(head) < (16 if length == 1 else 8):
            return len(head) + 1
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        return length if length >= 8 else 0  # 0: to the end of the file

    return _chain(file, size, 0, extent)


_SEGMENT, _CLUSTER = b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"
_AT_THE_TOP = frozenset((_SEGMENT, b"\x1a\x45\xdf\xa3", b"\xec", b"\xbf"))
"""Segments, EBML headers, padding and checksums."""
_IN_A_SEGMENT: frozenset[bytes] = frozenset(
    map(
        bytes.fromhex,
        (
            *("114d9b74", "1549a966", "1654ae6b", "1f43b675", "1c53bb6b", "1941a469", "1043a770", "1254c367"),
            *("e7", "5854", "a7", "ab", "a3", "a0", "af"),  # in a cluster: its time, blocks and groups of blocks, ...
        ),
    )
)


def _ebml(file: Any, size: int) -> int:
    """The elements of a Matroska file (RFC 9559): a header and a segment. A live recording (WebM from a browser) does not know
    the sizes of its segment and its clusters: there the elements in them follow, which state theirs.

    An element is its ID, as many bytes as its first says, its size, likewise, and its content.
    """
    known: set[bytes] = set(_AT_THE_TOP)

    def extent(head: bytes) -> int | None:
        id_length = 9 - head[0].bit_length()
        name, rest = head[:id_length], head[id_length:]
        if name not in known and (rest or not any(one.startswith(name) for one in known)):
            return None
        width = 9 - rest[0].bit_length() if rest else 1
        if len(rest) < min(width, 8):
            return len(head) + 1
        if width > 8:
            return 0  # no element
        value = int.from_bytes(rest[:width], "big") & ((1 << 7 * width) - 1)
        if value < (1 << 7 * width) - 1:
            return id_length + width + value
        if name not in (_SEGMENT, _CLUSTER):
            return 0
        known.update(_IN_A_SEGMENT)
        return id_length + width

    return _chain(file, size, 0, extent)


def _asf(file: Any, size: int) -> int:
    """The file size of the file properties object; a broadcast has none, but packets of one size, and perhaps an index."""
    head = _piece(file, 0, _HEAD)
    at = head.find(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365"))
    if at < 0 or len(head) < at + 100:
        return 0
    stated, flags, least, most = struct.unpack("<Q40xIII", head[at + 40 : at + 100])
    if not flags & 1:
        return stated
    packets = int.from_bytes(head[16:24], "little") + 50  # behind the header and the head of the data object
    if not least == most > 0 or size < packets:
        return 0
    tail = _piece(file, size - _TAIL, _TAIL)
    index = tail.rfind(bytes.fromhex("90080033b1e5cf1189f400a0c90349cb"))
    begin = size - len(tail) + index
    if index >= 0 and (begin - packets) % most == 0:
        return begin + max(int.from_bytes(tail[index + 16 : index + 24], "little"), 24)
    return size + -(size - packets) % most


def _flv(file: Any, size: int) -> int:
    """The size that its metadata states, and tags one after the other to the end of the file."""
    head = _piece(file, 0, _HEAD)
    at = head.find(b"filesize\x00")
    if at >= 0 and len(head) >= at + 17:
        stated = struct.unpack(">d", head[at + 9 : at + 17])[0]
        if 0 < stated < 1 << 62:
            return int(stated)
    whole = any(_ends_in_a_tag(file, size - rubbish) for rubbish in range(9))
    return size if whole else size + 1


def _ends_in_a_tag(file: Any, size: int) -> bool:
    """Whether the size of the last tag stands at the end, and that many bytes before it the tag."""
    tail = _piece(file, size - 4, 4)
    length = int.from_bytes(tail, "big") if len(tail) == 4 else 0
    tag = _piece(file, size - 4 - length, 4) if 11 <= length < size else b""
    return tag[:1] in (b"\x08", b"\x09", b"\x12") and int.from_bytes(tag[1:4], "big") + 11 == length


def _ogg(file: Any, size: int) -> int:
    """Pages to the end of the file."""
    tail = _piece(file, size - _TAIL, _TAIL)
    at = tail.rfind(b"OggS\x00")
    if at < 0 or len(tail) < at + 27 or len(tail) < at + 27 + tail[at + 26]:
        return size + 1
    end = at + 27 + tail[at + 26] + sum(tail[at + 27 : at + 27 + tail[at + 26]])
    return size + max(end - len(tail), 0)


def _transport(file: Any, size: int) -> int:
    """Packets of one size: 188 bytes, with a time stamp 192, with a checksum 204."""
    head = _piece(file, 0, _HEAD)
    for length, first in ((188, 0), (192, 4), (204, 0)):
        marks = range(first, min(len(head), 5 * length), length)
        if len(marks) > 1 and all(head[mark] == 0x47 for mark in marks):
            return size + -size % length
    return 0


def _program(file: Any, size: int) -> int:
    """Packets of an MPEG program stream with their lengths: the last must be whole."""
    tail = _piece(file, size - _TAIL, _TAIL)
    begin = len(tail)
    while (begin := tail.rfind(b"\x00\x00\x01", 0, begin)) >= 0:
        kind = tail[begin + 3] if begin + 3 < len(tail) else 0
        if kind in (0xB9, 0xBA):  # the end, or a pack that nothing follows
            return size
        if kind >= 0xBC and len(tail) >= begin + 6:
            end = begin + 6 + int.from_bytes(tail[begin + 4 : begin + 6], "big")
            if end == len(tail) or kind in (0xE0, 0xC0, 0xBD, 0xBE):
                return size + end - len(tail)
    return 0


def _mxf(file: Any, size: int) -> int:
    """The footer that the first partition of a finished file points at (SMPTE ST 377-1); one that was not finished has pieces
    that state their lengths."""
    head = _piece(file, 0, _HEAD)
    at = head.find(bytes.fromhex("060e2b34020501010d010201010204"))
    begin = at + 17 + (head[at + 16] & 0x7F if at >= 0 and len(head) > at + 16 and head[at + 16] & 0x80 else 0)
    stated = head[begin + 24 : begin + 32]
    footer = int.from_bytes(stated, "big") if at >= 0 and len(stated) == 8 else 0
    if not footer:
        return _chain(file, size, at, _klv) if at >= 0 else 0
    whole = _piece(file, footer, 16)[:14] == bytes.fromhex("060e2b34020501010d0102010104")
    return size if whole else max(footer, size) + 1


def _klv(head: bytes) -> int | None:
    """A key of 16 bytes, a length in one byte or in as many as that says, and a value (SMPTE ST 336)."""
    mark = bytes.fromhex("060e2b34")
    if not head.startswith(mark[: len(head)]):
        return None
    first = head[16] if len(head) > 16 else 0
    width = first & 0x7F if first & 0x80 else 0
    if len(head) < 17 + width:
        return len(head) + 1 if width <= 8 else 0
    return 17 + width + int.from_bytes(head[17 : 17 + width], "big") if width else (0 if first == 0x80 else 17 + first)


def _y4m(file: Any, size: int) -> int:
    """A line of text, then frames of one size, each behind a line of its own."""
    line = _piece(file, 0, _HEAD).partition(b"\n")[0]
    said = {word[:1]: word[1:].decode("latin1") for word in line.split(b" ")[1:]}
    form, sides = said.get(b"C", "420"), (said.get(b"W", ""), said.get(b"H", ""))
    plain = _piece(file, len(line) + 1, 6) == b"FRAME\n"  # its lines may say more
    if not plain or not all(re.fullmatch("[0-9]{1,6}", side) for side in sides) or form[:3] not in ("420", "422", "444", "mon"):
        return 0
    width, height = map(int, sides)
    chroma = {"420": 2 * (-(-width // 2) * -(-height // 2)), "422": 2 * -(-width // 2) * height, "444": 2 * width * height}
    frame = (width * height + chroma.get(form[:3], 0)) * (2 if re.search(r"p9|p1\d|mono9|mono1\d", form) else 1)
    return size + -(size - len(line) - 1) % (frame + len(b"FRAME\n"))


_ENDS: dict[str, Callable[[Any, int], int]] = {
    "avi": _riff,
    "mov,mp4,m4a,3gp,3g2,mj2": _boxes,
    "matroska,webm": _ebml,
    "asf": _asf,
    "flv": _flv,
    "ogg": _ogg,
    "mpegts": _transport,
    "mpeg": _program,
    "mxf": _mxf,
    "yuv4mpegpipe": _y4m,
}
