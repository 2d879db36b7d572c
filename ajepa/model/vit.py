"""Vision Transformer over log-mel patches (spec 3) and the narrow predictor (spec 5).

Shape legend: B samples, N patches of the window, K visible patches, M target patches, D width, P predictor width.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.config import PATCH, ModelConfig


def patchify(log_mel: Tensor) -> Tensor:
    """[B, n_mels, frames] -> [B, N, 256]; patch (f, t) has index f * columns + t and is flattened bins first."""
    batch, bins, frames = log_mel.shape
    grid = log_mel.reshape(batch, bins // PATCH, PATCH, frames // PATCH, PATCH)
    return grid.permute(0, 1, 3, 2, 4).reshape(batch, -1, PATCH * PATCH)


def gather(tokens: Tensor, indices: Tensor) -> Tensor:
    """Pick tokens: [B, N, D] and [B, K] -> [B, K, D]."""
    return tokens.gather(1, indices.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def sincos_positions(grid: tuple[int, int], width: int) -> Tensor:
    """[N, width]: half the channels encode the row, half the column, each as sines and cosines."""
    frequency = 1.0 / 10_000 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    parts = []
    for index in torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij"):
        angle = index.reshape(-1, 1) * frequency
        parts += [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1).float()


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V, [B, heads, K, d] each. `mask` [.., K, K] is true where a query may see a key, or is
    added to the scores.

    On a CPU in bfloat16 it is written out: PyTorch 2.11's fused kernel takes 2 to 12 times as long there, forward and
    backward, at 512 to 19 tokens (in float32 the fused kernel is the faster one).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):  # it would take the softmax in float32
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        return torch.softmax(scores, dim=-1).to(value.dtype) @ value


class Block(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        hidden = int(width * mlp_ratio)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, K, D] -> [B, K, D]. `mask` [.., K, K] is true where a query may see a key; None sees all."""
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each [B, heads, K, D / heads]
        attended = attention(query, key, value, mask)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def _init_weights(module: nn.Module, blocks: nn.ModuleList) -> None:
    """Xavier uniform, zero biases, and residual branches scaled by 1 / sqrt(2 * layer).

    ViT's fixed 0.02 is a third of Xavier's scale at width 192, and narrow encoders then hardly learn (measured:
    ajepa/evaluation/README.md).
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    with torch.no_grad():
        for depth, block in enumerate(blocks, start=1):
            assert isinstance(block, Block)
            block.proj.weight.div_(math.sqrt(2.0 * depth))
            block.fc2.weight.div_(math.sqrt(2.0 * depth))


class Encoder(nn.Module):
    """ViT that computes only the patches it is given.

    Positions are a learned table [rows, columns, D], started at sines and cosines.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = nn.Linear(PATCH * PATCH, config.width)
        self.positions = nn.Parameter(sincos_positions(config.grid, config.width))  # [N, D]
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.mlp_ratio) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        _init_weights(self, self.blocks)

    def forward(
        self, patches: Tensor, indices: Tensor | None = None, mask: Tensor | None = None, last_layers: int = 1
    ) -> Tensor | list[Tensor]:
        """Encode patches.

        Args:
            patches: [B, N, 256] normalised log-mel patches, all of the window's or its first columns'.
            indices: [B, K] patches to see; None sees all N. The others are never computed.
            mask: attention mask over the visible tokens, true where a query may see a key.
            last_layers: with K > 1, return the outputs of the last K blocks (before the final norm).

        Returns:
            [B, K, D] after the final norm, or a list of K such outputs before it.
        """
        positions = self.positions_for(patches.shape[1]).expand(patches.shape[0], -1, -1)
        if indices is not None:
            patches, positions = gather(patches, indices), gather(positions, indices)
        return self.transform(self.patch_embed(patches) + positions, mask, last_layers)

    def transform(self, x: Tensor, mask: Tensor | None = None, last_layers: int = 1) -> Tensor | list[Tensor]:
        """The blocks and the final norm, on embedded patches with positions [B, K, D]; see `forward`."""
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x, mask)
            if last_layers > 1 and i >= len(self.blocks) - last_layers:
                outputs.append(x)
        return outputs if last_layers > 1 else self.norm(x)

    def positions_for(self, num_patches: int) -> Tensor:
        """[1, num_patches, D]: the table sliced along time for an input shorter than the window.

        Raises:
            ValueError: more patches than the window has, or not whole columns.
        """
        rows, columns = self.config.grid
        columns_used, rest = divmod(num_patches, rows)
        if rest or not 0 < columns_used <= columns:
            raise ValueError(f"{num_patches} patches do not form 1 to {columns} columns of {rows}")
        return self.positions.reshape(rows, columns, -1)[:, :columns_used].reshape(1, num_patches, -1)


class Predictor(nn.Module):
    """Narrow Transformer: context representations and mask tokens in, predictions of masked patches out."""

    def __init__(self, config: ModelConfig, outputs: int | None = None) -> None:
        """outputs: values predicted for a patch, P; by default the encoder's width."""
        super().__init__()
        width = config.predictor_width
        self.embed = nn.Linear(config.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(sincos_positions(config.grid, width))  # [N, P]
        self.blocks = nn.ModuleList(
            Block(width, config.predictor_heads, config.mlp_ratio) for _ in range(config.predictor_depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, outputs or config.width)
        _init_weights(self, self.blocks)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, context: Tensor, context_indices: Tensor, target_indices: Tensor) -> Tensor:
        """[B, K, D], [B, K], [B, M] -> predictions [B, M, P]."""
        tokens = torch.cat(
            [
                self.embed(context) + F.embedding(context_indices, self.positions),
                F.embedding(target_indices, self.mask_token + self.positions),
            ],
            dim=1,
        )
        for block in self.blocks:
            tokens = block(tokens)
        return self.project(self.norm(tokens[:, context.shape[1] :]))
