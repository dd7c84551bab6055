"""Frames of films with a high dynamic range to sRGB, as a display of 8 bits shows them.

signal (PQ or HLG, BT.2020 primaries) -> light, 1 is reference white -> highlights compressed -> BT.709 primaries -> sRGB
"""

from __future__ import annotations

import numpy as np

PQ, HLG = 16, 18
"""Transfer characteristics (ITU-T H.273): SMPTE ST 2084, and hybrid log-gamma (ARIB STD-B67)."""
_REFERENCE_WHITE = 203.0  # candela per square metre (ITU-R BT.2408)
_HLG_PEAK = 1000.0  # of the display that HLG is mastered for (ITU-R BT.2100)
_KNEE = 0.8
"""Light up to here, 1 is reference white, stays; what is brighter is compressed towards 1."""
_ROWS = 32
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020's red, green and blue
_TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
"""From BT.2020's primaries to BT.709's, which are sRGB's (ITU-R BT.2087)."""


def _srgb_curve() -> np.ndarray:
    """[n] uint8 of light from 0 to 1 in n steps, by IEC 61966-2-1."""
    linear = np.linspace(0, 1, 1 << 17)
    return np.rint(255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype(np.uint8)


_SRGB = _srgb_curve()


def to_srgb(signal: np.ndarray, transfer: int) -> np.ndarray:
    """[H, W, 3] uint16 of the signal's full range to [H, W, 3] uint8.

    Example:
        >>> import numpy as np
        >>> from mmrope.preprocess.hdr import PQ, to_srgb
        >>> to_srgb(np.array([[[0, 0, 0], [38054] * 3, [65535] * 3]], np.uint16), PQ)[0, :, 0].tolist()  # black, white, peak
        [0, 243, 255]
    """
    levels = np.arange(65536) / 65535
    curve = (_pq(levels) if transfer == PQ else _hlg(levels)).astype(np.float32)
    out = np.empty(signal.shape, np.uint8)
    for row in range(0, len(signal), _ROWS):  # a few rows at a time: they stay in the cache
        out[row : row + _ROWS] = _shown(curve[signal[row : row + _ROWS]], transfer)
    return out


def _shown(light: np.ndarray, transfer: int) -> np.ndarray:
    """[rows, W, 3] float32, light of the display by PQ or of the scene by HLG, to [rows, W, 3] uint8."""
    if transfer == HLG:
        scene = light
        light = _HLG_PEAK / _REFERENCE_WHITE * scene * np.maximum(scene @ _LUMINANCE, 1e-9)[..., None] ** 0.2
    brightest = np.maximum(light.max(axis=-1, keepdims=True), 1e-9)
    above = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE)
    shown = np.where(above > 0, _KNEE + (1 - _KNEE) * above / (1 + above), brightest)
    linear = np.clip(light * (shown / brightest) @ _TO_709.T, 0, 1)
    return _SRGB[np.rint(linear * (len(_SRGB) - 1)).astype(np.int32)]


def _pq(signal: np.ndarray) -> np.ndarray:
    """Light by SMPTE ST 2084, 1 is reference white."""
    power = signal ** (32 / 2523)
    return 10000 / _REFERENCE_WHITE * (np.maximum(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)


def _hlg(signal: np.ndarray) -> np.ndarray:
    """Light of the scene from 0 to 1, by ITU-R BT.2100."""
    a = 0.17883277
    b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
