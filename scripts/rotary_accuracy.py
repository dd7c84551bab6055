"""How far cos and sin are from the truth, by position: scripts/results/rotary_accuracy.md.

    python scripts/rotary_accuracy.py

The truth is position * inv_freq in 80-bit floats, whose 64 digits hold the product exactly; inv_freq is float32, as models were
trained with it. 200 random positions of each range, all pairs of 128 channels. The kernel runs in Triton's interpreter.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernel is imported

from reports import row, write_result

from mmrope.encodings.rotary import RotaryEmbedding
from mmrope.encodings.scaling import DynamicNTK, LongRoPE
from mmrope.encodings.spec import RotarySpec

ROOT = Path(__file__).parents[1]
RANGES = (10**3, 10**4, 10**5, 10**6, 10**7, 2**31)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def truth(positions: np.ndarray, inv_freq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = np.fmod(
        positions.astype(np.longdouble)[:, None] * inv_freq.astype(np.longdouble),
        2 * np.longdouble("3.14159265358979323846264338327950288"),
    )
    return np.cos(angle), np.sin(angle)


def error(rope: RotaryEmbedding, ids: np.ndarray, inv_freq: np.ndarray, length: int | None = None) -> float:
    made = rope(torch.from_numpy(ids)[None], length=length, fold=False)
    return max(float(np.abs(mine.numpy() - right).max()) for mine, right in zip(made, truth(ids, inv_freq), strict=True))


def kernel_error(rope: RotaryEmbedding, ids: np.ndarray) -> float:
    """cos and sin are what becomes of the vector (1, 0) of each pair."""
    q = torch.cat([torch.ones(64), torch.zeros(64)]).expand(1, 1, len(ids), 128).to(DEVICE)
    turned, _ = rope.rotate(q, q, torch.from_numpy(ids)[None, None].to(DEVICE), backend="triton")
    cos, sin = turned[0, 0].cpu().numpy().reshape(-1, 2, 64).transpose(1, 0, 2)
    return max(float(np.abs(mine - right).max()) for mine, right in zip((cos, sin), truth(ids, rope.inv_freq), strict=True))


def main() -> None:
    assert np.finfo(np.longdouble).nmant == 63, "80-bit floats are needed"
    spec = RotarySpec.rope(128, theta=1e6)
    exact, hf = RotaryEmbedding(spec), RotaryEmbedding(spec, angles="hf")
    dynamic, longrope = spec.scaled(DynamicNTK(4096, 2.0)), spec.scaled(LongRoPE([1.5] * 64, [4.0] * 64, 4096, 8.0))
    lines = [f"torch {torch.__version__}, {DEVICE}; {time.strftime('%Y-%m-%d')}. Largest error of cos or sin, theta 1e6.", ""]
    lines += [row("positions below", *(f"{top:,}" for top in RANGES)), row(*["---"] * (len(RANGES) + 1))]
    rng = np.random.default_rng(0)
    whole = [rng.integers(top // 2, top, 200) for top in RANGES]
    parts = [(ids + rng.random(len(ids))).astype(np.float32) for ids in whole]
    parts[-1] = np.minimum(parts[-1], np.float32(2**31 - 128))
    rows = {
        "exact, whole ids": [error(exact, ids, spec.inv_freq) for ids in whole],
        "exact, float32 ids with fractions": [error(exact, ids, spec.inv_freq) for ids in parts],
        "exact, the kernel": [kernel_error(exact, ids[:8]) for ids in whole],
        "exact, LongRoPE past its length": [
            error(RotaryEmbedding(longrope), ids, longrope.at_length(9000), 9000) for ids in whole
        ],
        "exact, dynamic NTK at length 9,000, against spec.at_length": [
            error(RotaryEmbedding(dynamic), ids, dynamic.at_length(9000), 9000) for ids in whole
        ],
        'angles="hf", the float32 product': [error(hf, ids, hf.inv_freq) for ids in whole],
    }
    lines += [row(name, *(f"{value:.1e}" for value in values)) for name, values in rows.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    write_result(ROOT / "scripts" / "results" / "rotary_accuracy.md", text)


if __name__ == "__main__":
    main()
