"""Makes tests/references/shards/shards.json by running the code of Megatron-core and transformer-engine on the CPU.

    python scripts/make_shard_references.py --megatron FOLDER --transformer-engine FOLDER

The folders are the unpacked wheels. Each function is taken from its file by itself: the packages need a GPU to be imported.
"""

from __future__ import annotations

import argparse
import ast
import enum
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
MEGATRON = "megatron/core/utils.py"
TRANSFORMER_ENGINE = "transformer_engine/pytorch/attention/dot_product_attention/context_parallel.py"
SINGLE = [(8, 2), (16, 2), (16, 4), (24, 3)]
PACKS = [([0, 4, 8], 2), ([0, 8], 2), ([0, 8, 16], 2), ([0, 4, 16, 16, 24], 2), ([0, 8, 24], 4), ([0, 6, 18], 3)]


class Strategy(enum.Enum):
    """What transformer-engine's function wants as CPLoadBalancingStrategy."""

    NO_LOAD_BALANCE = 0
    DUAL_CHUNK_SWAP = 1


def function(path: Path, name: str, names: dict[str, Any]) -> Any:
    """A function of a file, that sees these names."""
    [found] = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef) and n.name == name]
    found.returns = None
    for argument in found.args.args:
        argument.annotation = None
    exec(compile(ast.Module([found], []), str(path), "exec"), names)
    return names[name]


def by_megatron(folder: Path, tokens: int, size: int, rank: int) -> list[int]:
    """The tokens that a rank holds of a batch of one row: get_batch_on_this_cp_rank."""
    names = {"torch": torch, "get_pg_size": lambda group: group[0], "get_pg_rank": lambda group: group[1]}
    of_rank = function(folder / MEGATRON, "get_batch_on_this_cp_rank", names)
    return of_rank({"tokens": torch.arange(tokens)[None]}, (size, rank))["tokens"][0].tolist()


def by_transformer_engine(folder: Path, cu_seqlens: list[int], size: int, rank: int) -> list[int]:
    """The tokens that a rank holds of a pack: get_batch_on_this_cp_rank, THD."""
    group = SimpleNamespace(get_world_size=lambda group: size, get_rank=lambda group: rank, ProcessGroup=None)
    fake = SimpleNamespace(distributed=group, arange=torch.arange, cat=torch.cat, device=torch.device, tensor=torch.tensor)
    names = {"torch": fake, "CPLoadBalancingStrategy": Strategy}
    of_rank = function(folder / TRANSFORMER_ENGINE, "get_batch_on_this_cp_rank", names)
    return of_rank(torch.tensor(cu_seqlens), torch.arange(cu_seqlens[-1])[None], None, None)[0][0].tolist()


def version(folder: Path) -> str:
    [metadata] = folder.glob("*.dist-info/METADATA")
    fields = dict(line.split(": ", 1) for line in metadata.read_text().splitlines() if ": " in line)
    return f"{fields['Name']} {fields['Version']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megatron", type=Path, required=True)
    parser.add_argument("--transformer-engine", type=Path, required=True)
    asked = parser.parse_args()
    cases = []
    for tokens, size in SINGLE:
        for rank in range(size):
            index = by_megatron(asked.megatron, tokens, size, rank)
            cases.append(
                {
                    "source": "megatron",
                    "cu_seqlens": [0, tokens],
                    "size": size,
                    "rank": rank,
                    "scheme": "zigzag",
                    "index": index,
                }
            )
    for totals, size in PACKS:
        for rank in range(size):
            index = by_transformer_engine(asked.transformer_engine, totals, size, rank)
            cases.append(
                {
                    "source": "transformer-engine",
                    "cu_seqlens": totals,
                    "size": size,
                    "rank": rank,
                    "scheme": "zigzag_per_sequence",
                    "index": index,
                }
            )
    made = {
        "megatron": f"get_batch_on_this_cp_rank of {version(asked.megatron)}, {MEGATRON}",
        "transformer-engine": f"get_batch_on_this_cp_rank of {version(asked.transformer_engine)}, {TRANSFORMER_ENGINE}",
    }
    path = ROOT / "tests" / "references" / "shards" / "shards.json"
    lines = ",\n".join(f"    {json.dumps(case)}" for case in cases)
    path.write_text(f'{{\n  "made": {json.dumps(made)},\n  "cases": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
