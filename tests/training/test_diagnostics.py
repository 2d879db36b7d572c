"""Figures that tell learning from collapse."""

import pytest
import torch

from ajepa.training.diagnostics import effective_rank, mean_cosine


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_effective_rank_counts_equal_directions(rank):
    features = torch.eye(16)[:rank].repeat(10, 1)
    assert effective_rank(features) == pytest.approx(rank, rel=1e-3)


def test_collapsed_features_have_rank_one():
    assert effective_rank(torch.randn(16).expand(100, 16)) == pytest.approx(1, abs=0.01)


def test_effective_rank_of_noise_is_near_its_dimension():
    assert effective_rank(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))) > 15.5


def test_mean_cosine_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    assert mean_cosine(features) == pytest.approx((0 + 2 * 0.5**0.5) / 3)
