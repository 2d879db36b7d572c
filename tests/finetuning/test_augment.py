"""Mixup, SpecAugment and barred keys: what they do, and that what is drawn depends on seed and sample alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ajepa.finetuning.augment import draw, key_mask, mask_spans, mix, mixed_frames
from ajepa.finetuning.config import FinetuneConfig

CONFIG = FinetuneConfig(mixup=0.5, time_masks=2, frequency_masks=1, masked_keys=0.3, seed=7)


def draws_of(samples, frames=64, config=CONFIG):
    return draw(config, np.asarray(samples), np.full(len(samples), frames), 32)


def test_draws_are_those_of_the_sample_whatever_else_is_in_the_batch():
    whole, part = draws_of(range(100, 108)), draws_of(range(102, 106))
    for name in ("weight", "time", "frequency"):
        assert torch.equal(getattr(whole, name)[2:6], getattr(part, name)), name


def test_other_seeds_and_samples_draw_otherwise():
    other = FinetuneConfig(**(CONFIG.to_dict() | {"seed": 8}))
    assert not torch.equal(draws_of(range(8)).weight, draws_of(range(8), config=other).weight)
    assert not torch.equal(draws_of(range(8)).time, draws_of(range(8, 16)).time)


def test_both_clips_of_a_pair_have_one_weight_and_a_clip_without_partner_stays():
    weight = draws_of(range(7)).weight[:, 0]
    assert torch.equal(weight[0:6:2], weight[1:6:2]) and weight[6] == 1
    assert (weight >= 0).all() and (weight <= 1).all()


def test_mixing_is_linear_in_log_mels_and_labels():
    log_mel = torch.randn(3, 4, 6)
    frames = torch.tensor([6, 6, 6])
    weight = torch.tensor([[0.25], [0.5], [1.0]])
    mixed, labels = mix(log_mel, frames, torch.eye(3), weight)
    own = mixed_frames(frames.numpy(), weight)
    torch.testing.assert_close(mixed[0], 0.25 * log_mel[0] + 0.75 * log_mel[1])
    torch.testing.assert_close(mixed[1], 0.5 * log_mel[1] + 0.5 * log_mel[0])
    assert torch.equal(mixed[2], log_mel[2]) and own.tolist() == frames.tolist()
    torch.testing.assert_close(labels, torch.tensor([[0.25, 0.75, 0], [0.5, 0.5, 0], [0, 0, 1]]))


def test_behind_the_end_of_the_shorter_clip_the_other_stands_alone():
    log_mel = torch.randn(2, 4, 6)
    frames, weight = torch.tensor([5, 2]), torch.tensor([[0.25], [0.25]])
    mixed, _ = mix(log_mel, frames, torch.eye(2), weight)
    assert mixed_frames(frames.numpy(), weight).tolist() == [5, 5]
    torch.testing.assert_close(mixed[0, :, :2], 0.25 * log_mel[0, :, :2] + 0.75 * log_mel[1, :, :2])
    assert torch.equal(mixed[0, :, 2:5], log_mel[0, :, 2:5]) and torch.equal(mixed[1, :, 2:5], log_mel[0, :, 2:5])


def test_without_weight_for_a_partner_nothing_changes():
    log_mel, frames = torch.randn(2, 4, 6), torch.tensor([3, 6])
    mixed, labels = mix(log_mel, frames, torch.eye(2), torch.ones(2, 1))
    own = mixed_frames(frames.numpy(), torch.ones(2, 1))
    assert torch.equal(mixed, log_mel) and own.tolist() == frames.tolist() and torch.equal(labels, torch.eye(2))


@given(frames=st.integers(1, 64), sample=st.integers(0, 1 << 40))
def test_masks_lie_within_the_clip_and_are_no_longer_than_allowed(frames, sample):
    drawn = draws_of([sample], frames)
    for spans, size, longest in (
        (drawn.time, frames, CONFIG.time_mask_frames),
        (drawn.frequency, 32, CONFIG.frequency_mask_bins),
    ):
        first, end = spans[..., 0], spans[..., 1]
        assert (first >= 0).all() and (end <= size).all() and (end >= first).all() and (end - first <= longest).all()


def test_masked_spans_hold_the_mean_and_nothing_else_is_touched():
    log_mel, mean = torch.randn(1, 4, 6), torch.arange(4.0)[:, None]
    masked = mask_spans(log_mel, mean, torch.tensor([[[1, 3]]]), torch.tensor([[[0, 1]]]))
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[:, 1:3] = hidden[0] = True
    assert torch.equal(masked[0][hidden], mean.expand(4, 6)[hidden])
    assert torch.equal(masked[0][~hidden], log_mel[0][~hidden])


def barred(samples, frames, rows=8, columns=4):
    mask = key_mask(CONFIG, np.asarray(samples), np.array(frames), rows)
    windows = sum(-(-((f + 8) // 16) // columns) for f in frames)
    return mask(windows, rows * columns)


def test_about_the_share_of_keys_is_barred_and_every_column_keeps_one():
    seen = barred(range(200), [64] * 200)
    assert (~seen).float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert seen.reshape(200, 8, 4).any(dim=1).all()


def test_barred_keys_are_the_samples_own_in_each_of_its_windows():
    whole, alone = barred([3, 4, 5], [100, 200, 64]), barred([4], [200])
    assert torch.equal(whole[2:5], alone[:3])
    assert not torch.equal(alone[0], alone[1])


def test_without_a_share_no_key_is_barred():
    assert key_mask(FinetuneConfig(), np.arange(2), np.array([64, 64]), 8) is None
