"""Makes tests/references/rotary/diffusers.json: vectors that diffusers' own modules rotated.

    PYTHONPATH=FOLDER python scripts/make_rotary_references.py

FOLDER holds diffusers, which is not among the test dependencies: `pip install --target FOLDER diffusers==0.42.1`.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed  # pyright: ignore
from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed  # pyright: ignore
from diffusers.models.transformers.transformer_flux import FluxPosEmbed  # pyright: ignore
from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed  # pyright: ignore
from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed  # pyright: ignore
from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed  # pyright: ignore

T, H, W = 3, 4, 5
TOKENS = [0, 1, 7, 23, 42, 59]


def main() -> None:
    latents = torch.zeros(1, 16, T, 2 * H, 2 * W)
    thw = torch.tensor(np.indices((T, H, W)).reshape(3, -1))  # [3, T * H * W]
    with_text = torch.cat([thw, thw[:1] + 7])
    made = {
        "wan": (WanRotaryPosEmbed(128, (1, 2, 2), 64)(latents), thw, -1),
        "hunyuan_video": (HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56])(latents), thw, -1),
        "flux": (FluxPosEmbed(10000, [16, 56, 56])(thw.T), thw, -1),
        "flux2": (Flux2PosEmbed(2000, [32] * 4)(with_text.T), with_text, -1),
        "cosmos": (CosmosRotaryPosEmbed(128)(latents, fps=24), thw, -2),
        "cogvideox": (get_3d_rotary_pos_embed(64, ((0, 0), (H, W)), (H, W), T), thw, -1),
    }
    cases = {}
    for name, ((cos, sin), ids, unbind) in made.items():
        cos, sin = (table.reshape(T * H * W, -1) for table in (cos, sin))
        x = torch.sin(torch.arange(cos.shape[1], dtype=torch.float32)).expand(1, 1, len(cos), -1)
        turned = apply_rotary_emb(x, (cos, sin), use_real_unbind_dim=unbind)[0, 0, TOKENS]
        cases[name] = {"ids": ids[:, TOKENS].tolist(), "turned": [[round(v, 6) for v in row] for row in turned.tolist()]}
    lines = ",\n".join(f'    "{name}": {json.dumps(case)}' for name, case in cases.items())
    text = f'{{\n  "made": "diffusers {version("diffusers")}; x[i] = sin(i)",\n  "cases": {{\n{lines}\n  }}\n}}\n'
    path = Path(__file__).parents[1] / "tests" / "references" / "rotary" / "diffusers.json"
    path.write_text(text)


if __name__ == "__main__":
    main()
