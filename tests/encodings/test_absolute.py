"""Sinusoidal and learned embeddings."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmrope.encodings import LearnedEmbedding, SinusoidalEmbedding


def test_sinusoids_by_hand():
    made = SinusoidalEmbedding(8)(torch.tensor([0, 1]))
    assert made[0].tolist() == [0, 1] * 4
    wanted = [f(w) for w in (1, 0.1, 0.01, 0.001) for f in (np.sin, np.cos)]
    np.testing.assert_allclose(made[1], wanted, atol=1e-7)
    other = SinusoidalEmbedding(8, layout="concat")(torch.tensor([0, 1]))
    torch.testing.assert_close(other, torch.cat([made[:, ::2], made[:, 1::2]], dim=1))


@pytest.mark.parametrize(
    ("dim", "distances"),
    [(128, {0: 64, 1: 62.0937, 10: 42.8200, 100: 30.5435, 1000: 10.1777}), (512, {0: 256, 1: 249.102, 10: 173.790, 50: 131.091, 100: 111.950, 1000: 44.972})],
)  # fmt: skip
def test_published_inner_products(dim, distances):
    embedding = SinusoidalEmbedding(dim)
    for base in (0, 777):
        for distance, product in distances.items():
            a, b = embedding(torch.tensor([base, base + distance])).double()
            assert float(a @ b) == pytest.approx(product, abs=2e-3)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10_000))
def test_shifts_are_rotations(position, shift):
    """PE[p + k] = R(k) PE[p], norms are sqrt(dim / 2), at any position."""
    embedding = SinusoidalEmbedding(32)
    there = embedding(torch.tensor([position, position + shift], dtype=torch.int64)).double()
    turn = embedding(torch.tensor(shift)).double()
    sin, cos = there[0, ::2], there[0, 1::2]
    torch.testing.assert_close(there[1, ::2], sin * turn[1::2] + cos * turn[::2], atol=1e-5, rtol=0)
    torch.testing.assert_close(there.norm(dim=1), torch.full((2,), 4.0, dtype=torch.float64), atol=1e-5, rtol=0)


def test_far_positions_are_those_of_the_formula():
    for position in (1_000, 1_000_000, 2**31 - 1):
        made = SinusoidalEmbedding(128)(torch.tensor(position))
        exact = [
            float(f(mpmath.mpf(position) / mpmath.mpf(10_000) ** (mpmath.mpf(2 * i) / 128)))
            for i in range(64)
            for f in (mpmath.sin, mpmath.cos)
        ]
        np.testing.assert_allclose(made, exact, atol=1e-6)


def test_learned_embeddings_compile():
    embedding = LearnedEmbedding(8, 4)
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.arange(5)), embedding(torch.arange(5)))


def test_inner_products_do_not_only_fall():
    products = SinusoidalEmbedding(128)(torch.arange(20)) @ SinusoidalEmbedding(128)(torch.tensor(0))
    assert int(torch.argmax((products.diff() > 0).int())) == 11  # the product at 12 is larger than that at 11


def test_there_is_nothing_past_the_last_position():
    embedding = LearnedEmbedding(8, 4)
    assert embedding(torch.arange(8)[None]).shape == (1, 8, 4)
    for wrong in ([8], [-1]):
        with pytest.raises(ValueError, match=r"but there are learned embeddings of 0 \.\. 7 alone: train longer ones"):
            embedding(torch.tensor(wrong))
    assert LearnedEmbedding(10_000, 16).weight.detach().std() == pytest.approx(0.02, rel=0.02)
    assert embedding(torch.zeros(0, dtype=torch.long)).shape == (0, 4)


def test_embeddings_of_images_are_resized():
    embedding = LearnedEmbedding(12, 3)
    with torch.no_grad():
        rows = torch.arange(3.0)[:, None].expand(3, 4).reshape(12)
        embedding.weight.copy_(torch.stack([rows, torch.ones(12), -rows], dim=1))
    larger = embedding.resized((3, 4), (6, 8))
    image = larger.weight.detach().reshape(6, 8, 3)
    torch.testing.assert_close(image[..., 1], torch.ones(6, 8))
    assert (image[1:, :, 0] > image[:-1, :, 0]).all()
    torch.testing.assert_close(embedding.resized((3, 4), (3, 4)).weight, embedding.weight)
    with_class = LearnedEmbedding(13, 3)
    with torch.no_grad():
        with_class.weight[1:] = embedding.weight
    again = with_class.resized((3, 4), (6, 8), prefix=1)
    torch.testing.assert_close(again.weight[0], with_class.weight[0])
    torch.testing.assert_close(again.weight[1:], larger.weight)
    with pytest.raises(ValueError, match="0 and a grid of 2 x 2 patches are 4, but there are 12 embeddings"):
        embedding.resized((2, 2), (3, 3))


def test_refusals():
    with pytest.raises(ValueError, match="dim must be an even number of channels, got 7"):
        SinusoidalEmbedding(7)
    with pytest.raises(ValueError, match="layout must be 'interleaved' or 'concat', got 'x'"):
        SinusoidalEmbedding(8, layout="x")
