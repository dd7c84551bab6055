"""Context parallelism without a framework: packed sequences over two processes, and ring attention between them.

Each process holds a part of every sequence ("zigzag": from the front and from the back, so that causal attention is equal
work) and the position IDs of just these tokens, and sends its keys and values around. Together they compute what one would.

python samples/context_parallel.py [--device cpu]
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

import mmrope
from mmrope import Segment

RANKS, HEADS, CHANNELS = 2, 4, 64
ROWS = [
    [Segment.text(20), Segment.image(h=8, w=12), Segment.text(30)],
    [Segment.text(5), Segment.video(t=8, h=4, w=6, seconds_per_grid=1.0), Segment.text(41)],
    [Segment.text(77)],
]


def attention(q, k, v, visible):
    """Softmax attention over some keys: what it sums up to [N, n, D], and the logarithm of the weights' sum [N, n, 1]."""
    scores = (q @ k.mT / CHANNELS**0.5).masked_fill(~visible, -torch.inf)  # [N, n, m]
    total = scores.logsumexp(dim=-1, keepdim=True)
    weights = (scores - total).exp().nan_to_num()  # a query that sees none of these keys
    return weights @ v, total


def visible(sequence, place, key_sequence, key_place):
    """Which keys a query sees [n, m]: those of its own sequence, up to itself. Places are of the whole, whoever holds them."""
    return (sequence[:, None] == key_sequence) & (place[:, None] >= key_place)


def ring_attention(q, k, v, sequence, place):
    """Attention to the keys of all ranks: each passes on what it got, and adds up what it saw."""
    rank, size = dist.get_rank(), dist.get_world_size()
    held = [k, v, sequence, place]
    out, total = torch.zeros_like(q), torch.full((*q.shape[:-1], 1), -torch.inf, device=q.device)
    for step in range(size):
        part, its_total = attention(q, held[0], held[1], visible(sequence, place, held[2], held[3]))
        both = torch.logaddexp(total, its_total)
        out = out * (total - both).exp().nan_to_num() + part * (its_total - both).exp().nan_to_num()
        total = both
        if step < size - 1:
            sent = [tensor.cpu() for tensor in held]  # gloo sends what is on the host
            got = [torch.empty_like(tensor) for tensor in sent]
            sends = [dist.P2POp(dist.isend, tensor, (rank + 1) % size) for tensor in sent]
            receives = [dist.P2POp(dist.irecv, tensor, (rank - 1) % size) for tensor in got]
            for request in dist.batch_isend_irecv(sends + receives):
                request.wait()
            held = [tensor.to(q.device) for tensor in got]
    return out


def shard(packed, rank):
    """The tokens that a rank holds."""
    return mmrope.positions.shard_index(packed.cu_seqlens_padded, size=RANKS, rank=rank, scheme="zigzag_per_sequence")


def work(rank, rendezvous, device):
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=RANKS)
    packed = mmrope.pack(ROWS, "qwen2_5_vl", multiple_of=2 * RANKS)
    index = shard(packed, rank)

    # one index for all that belongs to tokens; the whole is here only to compare with
    torch.manual_seed(0)
    whole = torch.randn(3, HEADS, len(packed.index), CHANNELS)  # q, k, v
    order = [torch.tensor(packed.sequence_index), torch.tensor(packed.text_ids)]
    q, k, v = whole[:, :, index].to(device)  # [N, n, D]
    sequence, place = (row[index].to(device) for row in order)
    rope = mmrope.RotaryEmbedding(mmrope.RotarySpec.mrope(head_dim=CHANNELS, theta=1e6, sections=(8, 12, 12))).to(device)

    ids = torch.tensor(packed.ids[:, None, index], device=device)  # [3, 1, n]
    q, k = (x[0] for x in rope.rotate(q[None], k[None], ids))
    out = ring_attention(q, k, v, sequence, place).cpu()

    gathered = [torch.empty_like(out) for _ in range(RANKS)]
    dist.all_gather(gathered, out)
    if rank == 0:
        order_back = np.argsort(np.concatenate([shard(packed, r) for r in range(RANKS)]))
        together = torch.cat(gathered, dim=1)[:, order_back]  # [N, T, D]
        q, k = (x[0] for x in rope.cpu().rotate(whole[None, 0], whole[None, 1], torch.tensor(packed.ids[:, None])))
        alone, _ = attention(q, k, whole[2], visible(*order, *order))
        print(f"{len(ROWS)} sequences, {packed.cu_seqlens[-1]} tokens, {len(index)} on each of {RANKS} ranks ({device})")
        print(f"largest difference from attention on one: {(together - alone).abs().max():.1e}")
        assert torch.allclose(together, alone, atol=2e-6)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        spawn(work, args=(Path(folder) / "rendezvous", asked.device), nprocs=RANKS)
