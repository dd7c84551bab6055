"""ICC profiles, made by hand from the numbers of the standards (ICC.1:2010): a matrix and curves, or a table."""

from __future__ import annotations

import struct

import numpy as np

D65, D50 = np.array([0.3127 / 0.3290, 1, 0.3583 / 0.3290]), np.array([0.9642, 1, 0.8249])
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
"""The chromaticities of red, green and blue; white is D65."""
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    """[3, 3] linear RGB to XYZ, whose white is D65."""
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def decoded(values: np.ndarray) -> np.ndarray:
    """sRGB's and Display P3's curve: values of 0 to 1 as linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(light: np.ndarray) -> np.ndarray:
    """The way back."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light.clip(0) ** (1 / 2.4) - 0.055)


def p3_as_srgb(pixels: np.ndarray) -> np.ndarray:
    """Display P3 as sRGB, [..., 3] uint8, by the definitions of both; what is outside sRGB is clipped."""
    light = decoded(pixels / 255) @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(DISPLAY_P3)).T
    return np.round(encoded(light.clip(0, 1)) * 255).astype(np.uint8)


# --- profiles ---------------------------------------------------------------------------------------------------------


def _number(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _text(text: str) -> bytes:
    body = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", len(body), 28) + body


def _place(values: np.ndarray) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(map(_number, values))


_CURVE = (
    b"para" + bytes(4) + struct.pack(">Hxx", 3) + b"".join(map(_number, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
)


def profile(space: bytes, tags: dict[bytes, bytes], *, between: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    """A profile of version 4: its header, a table of its tags, and the tags."""
    tags = {b"desc": _text("made by a test"), b"cprt": _text("none"), b"wtpt": _place(D50), **tags}
    table, body, at = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content
    size = at + len(body)
    header = struct.pack(">I4xI", size, 0x04200000) + kind + space + between + bytes(12) + b"acsp" + bytes(28)
    header += b"".join(map(_number, D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def matrix_profile(primaries: tuple[tuple[float, float], ...]) -> bytes:
    """Of a display with these primaries and sRGB's curve."""
    adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ D50) / (_BRADFORD @ D65)) @ _BRADFORD
    places = (adapted @ to_xyz(primaries)).T
    tags = {name + b"XYZ": _place(place) for name, place in zip((b"r", b"g", b"b"), places, strict=True)}
    return profile(b"RGB ", {**tags, **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _CURVE)})


def cmyk_profile() -> bytes:
    """Of a press whose ink is black alone: lightness falls from 100 to 0 with K, the other inks leave no trace."""
    straight = bytes(range(256))
    corners = b"".join(bytes([0 if n & 1 else 255, 128, 128]) for n in range(16))
    head = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + b"".join(map(_number, np.eye(3).flat))
    return profile(b"CMYK", {b"A2B0": head + straight * 4 + corners + straight * 3}, between=b"Lab ", kind=b"prtr")


P3_PROFILE, SRGB_PROFILE = matrix_profile(DISPLAY_P3), matrix_profile(SRGB)
GRAY_PROFILE = profile(b"GRAY", {b"kTRC": b"curv" + bytes(4) + struct.pack(">IH", 1, 256)})
"""Linear: a grey of 55 is as light as sRGB's 128."""
