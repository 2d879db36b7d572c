"""Is it learning or collapsing? Figures that need no labels."""

import torch
from torch import Tensor

from ajepa.model.vit import Encoder, patchify


def effective_rank(features: Tensor) -> float:
    """RankMe (Garrido et al., 2023): exp of the entropy of the normalised singular values of [n, D].

    Between 1 (all features on a line through the origin) and min(n, D). Features are taken as they are.
    """
    values = torch.linalg.svdvals(features.double())
    share = values / values.sum().clamp_min(1e-12) + 1e-7
    return float(torch.exp(-(share * share.log()).sum()))


def mean_cosine(features: Tensor) -> float:
    """Mean cosine between different rows of [n, D]; 1 means that all point the same way."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    n = len(unit)
    return float((unit.sum(dim=0).square().sum() - n) / (n * (n - 1)))


@torch.inference_mode()
def representation_health(encoder: Encoder, log_mel: Tensor) -> dict[str, float]:
    """Effective rank and mean cosine of centred mean-pooled clips, and mean cosine of patches within a clip.

    Args:
        log_mel: [n, n_mels, crop_frames], normalised: a fixed set, the same at every call.
    """
    tokens = encoder(patchify(log_mel))
    assert isinstance(tokens, Tensor)
    clips = tokens.mean(dim=1)
    return {
        "effective_rank": effective_rank(clips - clips.mean(dim=0)),
        "clip_cosine": mean_cosine(clips),
        "patch_cosine": sum(mean_cosine(t) for t in tokens[:32]) / len(tokens[:32]),
    }
