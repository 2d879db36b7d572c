"""FLOPs of the networks' matrix products, for one clip: linear layers, attention scores and values.

A multiply-add counts as two. The usual model FLOPs of MFU (Chowdhery et al., 2022, app. B): a backward pass is two
products for each of the forward pass, nothing is counted for recomputation, norms, activations, optimizer or EMA.
"""

from ajepa.config import PATCH, Config, ModelConfig
from ajepa.model.masking import target_count

BACKWARD = 2  # products of a backward pass for one of the forward pass


def blocks(tokens: int, depth: int, width: int, mlp_ratio: float) -> int:
    """A forward pass of transformer blocks."""
    hidden = int(width * mlp_ratio)
    return depth * (2 * tokens * (4 * width**2 + 2 * width * hidden) + 4 * tokens**2 * width)


def encoder_pass(model: ModelConfig, tokens: int, trained: bool) -> int:
    """The encoder on `tokens` patches, forward and, where it is trained, backward. The patch embedding has no gradient
    to hand on, so its backward pass is a single product."""
    embedding = 2 * tokens * PATCH**2 * model.width
    rest = blocks(tokens, model.depth, model.width, model.mlp_ratio)
    return 2 * embedding + (1 + BACKWARD) * rest if trained else embedding + rest


def predictor_pass(model: ModelConfig, visible: int, targets: int, outputs: int) -> int:
    """The predictor with `outputs` values for each masked patch, forward and backward."""
    width, narrow = model.width, model.predictor_width
    forward = (
        2 * visible * width * narrow
        + blocks(visible + targets, model.predictor_depth, narrow, model.mlp_ratio)
        + 2 * targets * narrow * outputs
    )
    return (1 + BACKWARD) * forward


def masked_passes(config: Config, outputs: int) -> dict[str, int]:
    """The encoder on the visible patches and the predictor, for all masks of a clip, forward and backward."""
    masks = config.train.masks_per_clip
    visible, masked = split_patches(config)
    return {
        "context_encoder": masks * encoder_pass(config.model, visible, trained=True),
        "predictor": masks * predictor_pass(config.model, visible, masked, outputs),
    }


def split_patches(config: Config) -> tuple[int, int]:
    """(visible, masked) patches of a mask."""
    masked = target_count(config.mask, config.model.grid)
    return config.model.num_patches - masked, masked
