"""The A-JEPA encoder for transformers: waveform in, embeddings of frames and of the clip out, or scores of labels.

The log-mel front end and its normalisation are part of the model (front_end_ajepa.py). It computes what
`ajepa.AudioEncoder` computes.

Shape legend: B clips, S samples, T frames of log-mel, R rows (frequency bands) and C columns (16 frames) of patches,
W windows of up to K columns, D width.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .configuration_ajepa import AJepaConfig
from .front_end_ajepa import AJepaFrontEnd, frame_count

PATCH = 16  # side of a square patch, in mel bins and in frames
PATCHES_AT_ONCE = {"cuda": 1 << 16}  # windows are encoded in parts of so many patches: memory stays bounded
CPU_PATCHES = 1 << 12
POOLED = {"mean": lambda rows: 1, "mean+std": lambda rows: 2, "bands mean+std": lambda rows: 2 * rows}  # widths of each


class AJepaBlock(nn.Module):
    """Pre-norm Transformer block: x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, config: AJepaConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = config.num_attention_heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[W, R * K, D] -> the same; `mask` [W, 1, 1, R * K] is false at keys that are not seen."""
        parts, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(parts, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        x = x + self.proj(attended.transpose(1, 2).reshape(parts, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class AJepaEncoder(nn.Module):
    """Vision transformer over the patches of a window, with a learned table of positions [R, columns, D]."""

    def __init__(self, config: AJepaConfig) -> None:
        super().__init__()
        self.grid = config.num_mel_bins // PATCH, config.window_frames // PATCH
        self.patch_embed = nn.Linear(PATCH * PATCH, config.hidden_size)
        self.positions = nn.Parameter(torch.zeros(self.grid[0] * self.grid[1], config.hidden_size))
        self.blocks = nn.ModuleList(AJepaBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)

    def forward(self, log_mel: Tensor, mask: Tensor | None, hidden_states: bool = False) -> list[Tensor]:
        """Normalised log-mels [W, n_mels, K * 16] to [W, R, K, D]; with `hidden_states`, to the embedded patches, the
        output of each block, and then that."""
        (rows, columns), used = self.grid, log_mel.shape[-1] // PATCH
        patches = log_mel.unflatten(1, (rows, PATCH)).unflatten(3, (used, PATCH)).transpose(2, 3)  # [W, R, K, 16, 16]
        positions = self.positions.unflatten(0, (rows, columns))[:, :used].flatten(0, 1)
        x = self.patch_embed(patches.flatten(3).flatten(1, 2).to(self.patch_embed.weight.dtype)) + positions
        states = [x]
        for block in self.blocks:
            x = block(x, mask)
            states.append(x)
        states = [*states, self.norm(x)] if hidden_states else [self.norm(x)]
        return [state.unflatten(1, (rows, used)) for state in states]


class AJepaPreTrainedModel(PreTrainedModel):
    """What transformers needs to know of all models here."""

    config_class = AJepaConfig
    base_model_prefix = "ajepa"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    _supports_sdpa = True
    _no_split_modules = ["AJepaBlock"]  # noqa: RUF012  transformers takes a list

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, AJepaEncoder):
            nn.init.trunc_normal_(module.positions, std=0.02)


class AJepaModel(AJepaPreTrainedModel):
    """Waveforms to embeddings of frames (a column of patches: 16 frames of log-mel) and of clips.

    Input longer than the window is cut into windows that cover it evenly, the last one flush with its end; where they
    overlap, embeddings are averaged. Padding is barred from attention and counts in no pool.
    """

    def __init__(self, config: AJepaConfig) -> None:
        super().__init__(config)
        self.front_end = AJepaFrontEnd(config)
        self.encoder = AJepaEncoder(config)
        self.post_init()

    def columns(self, samples: int) -> int:
        """T', the valid frames of `last_hidden_state` of a clip of so many samples: a column of patches counts when
        half of its log-mel frames are sound, and there is at least one."""
        return max(1, (frame_count(self.config, samples) + PATCH // 2) // PATCH)

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor, ...]:
        """Embed mono waveforms.

        Args:
            input_values: [B, S] floats between -1 and 1 at `config.sampling_rate`.
            attention_mask: [B, S] zero behind the end of a shorter clip; None where all are of length S.
            output_hidden_states: also give the embedded patches and the output of every block, as frames.

        Returns:
            `last_hidden_state` [B, T', D], the mean over the rows of a column of patches, zero behind a clip's end
            (see `columns`); `pooler_output` [B, D], the mean over all valid patches.

        Raises:
            ValueError: another shape, a clip without samples, or padding at the left.
        """
        asked = self.wants_hidden_states(output_hidden_states)
        states, valid = self.tokens(input_values, attention_mask, by_row=False, hidden_states=asked)
        frames = [state[:, 0] for state in states]
        pooled = frames[-1].sum(dim=1) / valid.sum(dim=1, keepdim=True)
        dtype = self.encoder.patch_embed.weight.dtype
        output = BaseModelOutputWithPooling(
            last_hidden_state=frames[-1].to(dtype),
            pooler_output=pooled.to(dtype),
            hidden_states=tuple(frame.to(dtype) for frame in frames[:-1]) or None,
        )
        return output if _returns_dict(self.config, return_dict) else output.to_tuple()

    def wants_hidden_states(self, asked: bool | None) -> bool:
        return bool(self.config.output_hidden_states if asked is None else asked)

    def tokens(
        self, input_values: Tensor, attention_mask: Tensor | None, by_row: bool, hidden_states: bool
    ) -> tuple[list[Tensor], Tensor]:
        """Embeddings [B, R, C, D] of every patch with `by_row`, else [B, 1, C, D], their mean over rows; in float32,
        zero behind a clip's end, in a list behind those of the hidden states if they are asked for. And the valid
        columns [B, C]."""
        device, rows = input_values.device, self.encoder.grid[0]
        lengths = _lengths(input_values, attention_mask)
        columns = [self.columns(length) for length in lengths]
        most = max(columns)
        window = min(most, self.encoder.grid[1])
        starts = [_starts(count, window) for count in columns]
        windows = [(clip, start) for clip, own in enumerate(starts) for start in own]
        log_mels = self._windows(input_values, lengths, starts, window)
        at_once = max(1, PATCHES_AT_ONCE.get(device.type, CPU_PATCHES) // (rows * window))
        nowhere = len(columns) * most  # the place of what is behind a clip's end
        count = torch.zeros(nowhere + 1, device=device)
        sums: list[Tensor] = []
        for i in range(0, len(windows), at_once):
            part = windows[i : i + at_once]
            inputs = torch.stack([next(log_mels) for _ in part])
            places = [
                c * most + k if k < columns[c] else nowhere for c, start in part for k in range(start, start + window)
            ]
            place = torch.tensor(places, device=device)
            seen = (place < nowhere).reshape(-1, 1, window).expand(-1, rows, -1).flatten(1)
            outputs = self.encoder(inputs, seen[:, None, None] if nowhere in places else None, hidden_states)
            outputs = [_full(output, by_row) for output in outputs]
            sums = sums or [output.new_zeros(nowhere + 1, output.shape[1], output.shape[-1]) for output in outputs]
            for total, output in zip(sums, outputs, strict=True):
                total.index_add_(0, place, output.transpose(1, 2).flatten(0, 1))
            count.index_add_(0, place, torch.ones(len(places), device=device))
        share = count[:-1].clamp_min(1)[:, None, None]
        tokens = [(total[:-1] / share).unflatten(0, (len(columns), most)).transpose(1, 2) for total in sums]
        return tokens, torch.arange(most, device=device) < torch.tensor(columns, device=device)[:, None]

    def _windows(
        self, input_values: Tensor, lengths: list[int], starts: list[list[int]], window: int
    ) -> Iterator[Tensor]:
        """The log-mels [n_mels, window * 16] of the windows that begin at these columns, clip after clip."""
        for clip, length, own in zip(input_values, lengths, starts, strict=True):
            yield from self.front_end.windows(clip[:length], [start * PATCH for start in own], window * PATCH)


class AJepaForAudioClassification(AJepaPreTrainedModel):
    """An encoder and one linear layer on its pooled patches."""

    def __init__(self, config: AJepaConfig) -> None:
        if not config.num_labels:
            raise ValueError(
                "this folder holds an encoder without labels: load it with AutoModel; or export a fine-tuned model "
                "(export.py FINETUNED/seed-0-fold-1/model OUTPUT --format transformers); or, to train a new head, "
                "give num_labels=N to from_pretrained"
            )
        super().__init__(config)
        self.ajepa = AJepaModel(config)
        width = POOLED[config.pooling](config.num_mel_bins // PATCH) * config.hidden_size
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SequenceClassifierOutput | tuple[Tensor, ...]:
        """Logits [B, labels] of waveforms; see AJepaModel.forward.

        Args:
            labels: [B] classes, or [B, labels] between 0 and 1 where a clip may have several; then there is a loss.
        """
        asked = self.ajepa.wants_hidden_states(output_hidden_states)
        by_row = self.config.pooling != "mean"
        states, valid = self.ajepa.tokens(input_values, attention_mask, by_row, asked)
        pooled = _pool(states[-1], valid, self.config.pooling)
        dtype = self.classifier.weight.dtype
        logits = self.classifier(pooled.to(dtype))
        loss = None
        if labels is not None and self.config.problem_type == "multi_label_classification":
            loss = F.binary_cross_entropy_with_logits(logits, labels.to(dtype))
        elif labels is not None:
            loss = F.cross_entropy(logits, labels)
        hidden = tuple(state.mean(dim=1).to(dtype) for state in states[:-1]) or None
        output = SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=hidden)
        return output if _returns_dict(self.config, return_dict) else output.to_tuple()


def _returns_dict(config: AJepaConfig, asked: bool | None) -> bool:
    return bool(config.return_dict if asked is None else asked)


def _lengths(input_values: Tensor, attention_mask: Tensor | None) -> list[int]:
    """Valid samples of each clip."""
    if input_values.ndim != 2 or not input_values.numel():
        raise ValueError(f"input_values has the shape [batch, samples], not {list(input_values.shape)}")
    if attention_mask is None:
        return [input_values.shape[1]] * len(input_values)
    if attention_mask.shape != input_values.shape:
        raise ValueError(f"attention_mask has the shape of input_values, {list(input_values.shape)}")
    lengths = [int(row.count_nonzero()) for row in attention_mask]  # of all at once takes eight bytes a sample
    if any(not length or not bool(row[:length].all()) for row, length in zip(attention_mask, lengths, strict=True)):
        raise ValueError("attention_mask: each clip has samples, then padding; pad with padding_side='right'")
    return lengths


def _starts(columns: int, window: int) -> list[int]:
    """First columns of the windows that cover a clip evenly."""
    count = max(1, -(-columns // window))
    return [i * max(0, columns - window) // max(1, count - 1) for i in range(count)]


def _full(output: Tensor, by_row: bool) -> Tensor:
    """[W, R, K, D] in float32 or better; averaged over rows unless they are to be kept, [W, 1, K, D]."""
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    return output if by_row else output.mean(dim=1, keepdim=True)


def _pool(tokens: Tensor, valid: Tensor, pooling: str) -> Tensor:
    """[B, R, C, D] over the valid columns [B, C] to [B, D'], D' being POOLED widths."""
    weight = valid[:, None, :, None].to(tokens.dtype)
    over = (2,) if pooling.startswith("bands") else (1, 2)
    weight = weight if over == (2,) else weight.expand(-1, tokens.shape[1], -1, -1)
    count = weight.sum(dim=over, keepdim=True)
    mean = (tokens * weight).sum(dim=over, keepdim=True) / count
    if pooling == "mean":
        return mean.squeeze(over)
    variance = ((tokens - mean).square() * weight).sum(dim=over, keepdim=True) / count
    std = torch.where(variance > 0, variance, 1).sqrt() * (variance > 0)  # of 0 the gradient is 0
    return torch.cat([mean.squeeze(over), std.squeeze(over)], dim=-1).flatten(1)
