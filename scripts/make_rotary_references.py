"""Makes tests/references/rotary/<upstream>.json: vectors that upstreams' own code rotated.

    PYTHONPATH=FOLDER python scripts/make_rotary_references.py diffusers
    PYTHONPATH=FOLDER python scripts/make_rotary_references.py moonvit
    python scripts/make_rotary_references.py croco|rope_vit|vggt CHECKOUT

FOLDER holds what is not among the test dependencies: `pip install --target FOLDER diffusers==0.42.1`, and for moonvit
`pip install --no-deps --target FOLDER sglang==0.5.23`, whose Kimi-VL code is imported; only its rotary is run. CHECKOUT is
one of github.com/naver/croco at d7de070, naver-ai/rope-vit at ce85c2e, or facebookresearch/vggt at 40eb1c5.
"""

from __future__ import annotations

import argparse
import ast
import json
import subprocess
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

T, H, W = 3, 4, 5
TOKENS = [0, 1, 7, 23, 42, 59]
SOME = [*range(40), *range(1020, 1040), *range(-32, 0)]
"""Channels of rotaries with thousands of them."""


def case(
    preset: str,
    ids: Any,
    width: int,
    rotate: Callable[[Tensor], Tensor],
    *,
    tokens: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    tolerance: float | None = None,
) -> dict[str, Any]:
    """What `rotate` makes of x [S, width], at some tokens of ids [A, S], in some channels."""
    ids = np.asarray(ids)
    tokens = range(ids.shape[1]) if tokens is None else tokens
    channels = None if channels is None else [c % width for c in channels]
    x = torch.sin(torch.arange(width, dtype=torch.float32)).repeat(ids.shape[1], 1)
    rotated = rotate(x)[list(tokens)]
    rotated = rotated if channels is None else rotated[:, channels]
    return {
        "preset": preset,
        "ids": ids[:, list(tokens)].tolist(),
        **({} if channels is None else {"channels": channels}),
        **({} if tolerance is None else {"tolerance": tolerance}),
        "rotated": [[round(v, 6) for v in row] for row in rotated.tolist()],
    }


# --- diffusers ----------------------------------------------------------------------------------------------------------


def diffusers() -> tuple[str, dict[str, Any]]:
    from diffusers.models.embeddings import apply_rotary_emb, get_3d_rotary_pos_embed  # pyright: ignore
    from diffusers.models.transformers.transformer_cosmos import CosmosRotaryPosEmbed  # pyright: ignore
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed  # pyright: ignore
    from diffusers.models.transformers.transformer_flux2 import Flux2PosEmbed  # pyright: ignore
    from diffusers.models.transformers.transformer_hunyuan_video import HunyuanVideoRotaryPosEmbed  # pyright: ignore
    from diffusers.models.transformers.transformer_hunyuan_video15 import HunyuanVideo15RotaryPosEmbed  # pyright: ignore
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed  # pyright: ignore

    latents = torch.zeros(1, 16, T, 2 * H, 2 * W)
    thw = np.indices((T, H, W)).reshape(3, -1)  # [3, T * H * W]
    with_text = np.concatenate([thw, thw[:1] + 7])
    made = {
        "wan": (WanRotaryPosEmbed(128, (1, 2, 2), 64)(latents), thw, -1),
        "hunyuan_video": (HunyuanVideoRotaryPosEmbed(2, 1, [16, 56, 56])(latents), thw, -1),
        "hunyuan_video_15": (HunyuanVideo15RotaryPosEmbed(1, 1, [16, 56, 56])(torch.zeros(1, 65, T, H, W)), thw, -1),
        "flux": (FluxPosEmbed(10000, [16, 56, 56])(torch.tensor(thw.T)), thw, -1),
        "flux2": (Flux2PosEmbed(2000, [32] * 4)(torch.tensor(with_text.T)), with_text, -1),
        "cosmos": (CosmosRotaryPosEmbed(128)(latents, fps=24), thw, -2),
        "cogvideox": (get_3d_rotary_pos_embed(64, ((0, 0), (H, W)), (H, W), T), thw, -1),
    }
    cases = {}
    for name, (tables, ids, unbind) in made.items():
        cos, sin = (table.reshape(T * H * W, -1) for table in tables)

        def rotate(x: Tensor, cos: Tensor = cos, sin: Tensor = sin, unbind: int = unbind) -> Tensor:
            return apply_rotary_emb(x[None, None], (cos, sin), use_real_unbind_dim=unbind)[0, 0]

        cases[name] = case(name, ids, cos.shape[1], rotate, tokens=TOKENS)
    return f"diffusers {version('diffusers')}", {**cases, **_qwen_image(), **_lumina2(), **_ltx_video()}


def _centred(*thw: int, t: int = 0) -> np.ndarray:
    """[3, S], the ids of an image."""
    _, h, w = thw
    return np.indices(thw).reshape(3, -1) + np.array([[t], [h // 2 - h], [w // 2 - w]])


def _qwen_image() -> dict[str, Any]:
    from diffusers.models.transformers.transformer_qwenimage import (  # pyright: ignore
        QwenEmbedLayer3DRope,
        QwenEmbedRope,
        apply_rotary_emb_qwen,
    )
    from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21Rope  # pyright: ignore

    axes_dim, images, device = [16, 56, 56], [(1, 5, 8), (1, 7, 2), (1, 3, 3)], torch.device("cpu")
    text = np.repeat(np.arange(6)[None], 3, axis=0)  # [3, 6]

    def rotated(name: str, ids: list[np.ndarray], table: Tensor, tokens: Sequence[int]) -> dict[str, Any]:
        def rotate(x: Tensor) -> Tensor:
            return apply_rotary_emb_qwen(x[None, :, None], table, use_real=False)[0, :, 0]

        return case(name, np.concatenate(ids, axis=1), 128, rotate, tokens=tokens)

    by_image = QwenEmbedRope(10000, axes_dim, scale_rope=True)([images], device=device, max_txt_seq_len=6)
    by_layer = QwenEmbedLayer3DRope(10000, axes_dim, scale_rope=True)([images], 6, device=device)
    tokens = [0, 13, 40, 53, 62, 63, 68]
    # text, an image, text, an image
    places = torch.tensor([False] * 4 + [True] * 40 + [False] * 2 + [True] * 14)
    joint = QwenImage21Rope(10000, axes_dim)(images[:2], places, device)
    joint_ids = [text[:, :4], _centred(*images[0], t=4), text[:, :2] + 12, _centred(*images[1], t=14)]
    return {
        "qwen_image": rotated(
            "qwen_image", [*(_centred(*n, t=t) for t, n in enumerate(images)), text + 4], torch.cat(by_image), tokens
        ),
        "qwen_image, layered": rotated(
            "qwen_image",
            [*(_centred(*n, t=t) for t, n in zip((0, 1, -1), images, strict=True)), text + 4],
            torch.cat(by_layer),
            tokens,
        ),
        "qwen_image_21": rotated("qwen_image_21", joint_ids, joint, [0, 3, 4, 17, 44, 45, 46, 59]),
    }


def _lumina2() -> dict[str, Any]:
    from diffusers.models.embeddings import apply_rotary_emb  # pyright: ignore
    from diffusers.models.transformers.transformer_lumina2 import Lumina2RotaryPosEmbed  # pyright: ignore

    caption = 9
    image = np.indices((1, H, W)).reshape(3, -1) + np.array([[caption], [0], [0]])
    ids = np.concatenate([np.arange(caption) * np.array([[1], [0], [0]]), image], axis=1)
    table = Lumina2RotaryPosEmbed(10000, [32, 32, 32])(
        torch.zeros(1, 16, 2 * H, 2 * W), torch.ones(1, caption, dtype=torch.int64)
    )[3]

    def rotate(x: Tensor) -> Tensor:
        return apply_rotary_emb(x[None, :, None], table, use_real=False)[0, :, 0]

    return {"lumina2": case("lumina2", ids, 96, rotate, tokens=[0, 1, 8, 9, 17, 28])}


def _ltx_video() -> dict[str, Any]:
    from diffusers import LTXConditionPipeline  # pyright: ignore
    from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed, apply_rotary_emb  # pyright: ignore

    rate = 25
    t, h, w = np.indices((T, H, W)).reshape(3, -1)
    latents = torch.zeros(1, T * H * W, 128)
    coords = LTXConditionPipeline._scale_video_ids(LTXConditionPipeline._prepare_video_ids(1, T, H, W)).float()
    coords[:, 0] *= 1 / rate
    cases = {}
    for name, preset, channels, frames in (
        ("ltx_video", "ltx_video", 2048, 8 * t),
        ("ltx_video, LTXConditionPipeline", "ltx_video", 2048, np.maximum(8 * t - 7, 0)),
        ("ltx_video_13b", "ltx_video_13b", 4096, 8 * t),
    ):
        by_coords = {"video_coords": coords} if "LTXConditionPipeline" in name else {}
        by_grid = {"num_frames": T, "height": H, "width": W, "rope_interpolation_scale": (8 / rate, 32, 32)}
        tables = LTXVideoRotaryPosEmbed(channels)(latents, **(by_coords or by_grid))

        def rotate(x: Tensor, tables: tuple[Tensor, Tensor] = tables) -> Tensor:
            return apply_rotary_emb(x[None], tables)[0]

        ids = 2 * np.stack([frames / rate / 20, h * 32 / 2048, w * 32 / 2048]) - 1
        # angles of up to 15708 radians, whose last bit in float32 is 0.001
        cases[name] = case(preset, ids, channels, rotate, tokens=TOKENS, channels=SOME, tolerance=3e-3)
    return cases


# --- from source --------------------------------------------------------------------------------------------------------


def moonvit() -> tuple[str, dict[str, Any]]:
    file = "sglang/srt/models/kimi_vl_moonvit.py"
    code = defined(
        Path(str(distribution("sglang").locate_file(file))), "Rope2DPosEmb", "apply_rope", "_apply_rope_input_validation"
    )
    table = code["Rope2DPosEmb"](72, 16, 20, device="cpu").get_freqs_cis_by_seqlens(torch.tensor([[H, W]]))

    def rotate(x: Tensor) -> Tensor:
        return code["apply_rope"](x[:, None], x[:, None], table)[0][:, 0]

    return f"sglang {version('sglang')}, {file}", {"moonvit": case("moonvit", np.indices((H, W)).reshape(2, -1), 72, rotate)}


def croco(checkout: Path) -> tuple[str, dict[str, Any]]:
    module = defined(checkout / "models" / "pos_embed.py", "RoPE2D")["RoPE2D"]()
    ids = np.indices((H, W)).reshape(2, -1)
    return f"naver/croco {_commit(checkout)}", {"croco": case("croco", ids, 64, _by_positions(module, ids))}


def rope_vit(checkout: Path) -> tuple[str, dict[str, Any]]:
    names = ("compute_axial_cis", "init_t_xy", "apply_rotary_emb", "reshape_for_broadcast")
    code = defined(checkout / "models" / "vit_rope.py", *names)
    table = code["compute_axial_cis"](64, end_x=W, end_y=H)
    ids = np.indices((H, W)).reshape(2, -1)[::-1]

    def rotate(x: Tensor) -> Tensor:
        return code["apply_rotary_emb"](x[None, None], x[None, None], table)[0][0, 0]

    return f"naver-ai/rope-vit {_commit(checkout)}", {"rope_vit_axial": case("rope_vit_axial", ids, 64, rotate)}


def vggt(checkout: Path) -> tuple[str, dict[str, Any]]:
    file = checkout / "vggt" / "layers" / "rope.py"
    code = defined(file, "RotaryPositionEmbedding2D", "PositionGetter")
    # what Aggregator.forward does: 0 of camera and register tokens, here two, patches from 1
    patches = code["PositionGetter"]()(1, H, W, "cpu")[0].T.numpy() + 1
    ids = np.concatenate([np.zeros((2, 2), dtype=np.int64), patches], axis=1)
    module = code["RotaryPositionEmbedding2D"]()
    return f"facebookresearch/vggt {_commit(checkout)}", {"vggt": case("vggt", ids, 64, _by_positions(module, ids))}


def _by_positions(module: nn.Module, ids: np.ndarray) -> Callable[[Tensor], Tensor]:
    return lambda x: module(x[None, None], torch.tensor(ids.T)[None])[0, 0]


def defined(file: Path, *names: str) -> dict[str, Any]:
    """Functions and classes of a source file, run without the rest of it and what it imports."""
    tree = ast.parse(file.read_text())
    found = [node for node in ast.walk(tree) if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name in names]
    code: dict[str, Any] = {
        "torch": torch,
        "nn": nn,
        "F": nn.functional,
        "cached_property": cached_property,
        "get_device": None,
    }
    future = ast.parse("from __future__ import annotations").body
    exec(compile(ast.Module([*future, *found], []), str(file), "exec"), code)
    return code


def _commit(checkout: Path) -> str:
    return subprocess.run(
        ["git", "-C", checkout, "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="upstream", required=True)
    for function in (diffusers, moonvit, croco, rope_vit, vggt):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        if function in (croco, rope_vit, vggt):
            command.add_argument("checkout", type=Path)
    arguments = vars(parser.parse_args())
    upstream, function = arguments.pop("upstream"), arguments.pop("function")
    made, cases = function(**arguments)
    lines = ",\n".join(f'    "{name}": {json.dumps(made_case)}' for name, made_case in cases.items())
    text = f'{{\n  "made": "{made}; x[i] = sin(i)",\n  "cases": {{\n{lines}\n  }}\n}}\n'
    path = Path(__file__).parents[1] / "tests" / "references" / "rotary" / f"{upstream}.json"
    path.write_text(text)


if __name__ == "__main__":
    main()
