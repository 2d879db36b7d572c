"""Settings of an A-JEPA encoder for transformers: the front end and the vision transformer behind it."""

from typing import Any

from transformers import PretrainedConfig


class AJepaConfig(PretrainedConfig):
    """Everything that the model is built from; an exported config.json names all of it.

    Args:
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: of the encoder.
        num_mel_bins: rows of a log-mel, a multiple of 16.
        window_frames: frames of the longest input that is encoded at once, a multiple of 16; longer input is cut into
            windows.
        sampling_rate: in Hz.
        n_fft, win_length, hop_length: in samples.
        f_min, f_max: of the mel filters, in Hz.
        log_epsilon: added to the mel power before the logarithm.
        pooling: how a classifier makes one vector of a clip: "mean", "mean+std" or "bands mean+std".
        origin: where the weights come from.
        id2label, num_labels: of a classifier; an encoder has none, where transformers would make up two.
    """

    model_type = "ajepa"

    def __init__(
        self,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        num_mel_bins: int = 128,
        window_frames: int = 1024,
        sampling_rate: int = 16_000,
        n_fft: int = 512,
        win_length: int = 400,
        hop_length: int = 160,
        f_min: float = 0.0,
        f_max: float = 8_000.0,
        log_epsilon: float = 1e-6,
        pooling: str = "mean",
        origin: dict[str, Any] | None = None,
        id2label: dict[Any, str] | None = None,
        num_labels: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.num_attention_heads, self.intermediate_size = num_attention_heads, intermediate_size
        self.num_mel_bins, self.window_frames = num_mel_bins, window_frames
        self.sampling_rate = sampling_rate
        self.n_fft, self.win_length, self.hop_length = n_fft, win_length, hop_length
        self.f_min, self.f_max, self.log_epsilon = f_min, f_max, log_epsilon
        self.pooling = pooling
        self.origin = origin or {}
        if num_labels is not None:
            kwargs["num_labels"] = num_labels
        elif id2label is None:
            id2label = {}
        super().__init__(id2label=id2label, **kwargs)
