"""An encoder for X-ARES (https://github.com/jimbozhang/xares): `AJEPA_ENCODER=RUN python -m xares.run ajepa/xares.py
TASKS`. X-ARES looks for the one name in this file that ends with "Encoder".
"""

import os

from torch import Tensor, nn

from ajepa.errors import UserError
from ajepa.inference import encoder as _encoder
from ajepa.inference.pretrained import load_encoder
from ajepa.inference.shipped import DIGESTS

VARIABLE = "AJEPA_ENCODER"  # X-ARES makes encoders without arguments


class AJEPAEncoder(nn.Module):
    """[B, samples] at `sampling_rate` -> [B, T', output_dim], one vector every `hop_size_in_ms`.

    Args:
        path: run folder, checkpoint or export, or `nano`, which comes with ajepa; by default what AJEPA_ENCODER names.
        hop_ms: 160, 80, 40, 20 or 10. At 40, as X-ARES's own baseline has, files of embeddings are as large as its.
        bands: "mean" over the rows of patches, or "concat": 8 times as large, about 0.02 better on ESC-10.

    Raises:
        UserError: no path, or nothing there.
    """

    def __init__(self, path: str | None = None, *, hop_ms: float = 40, bands: _encoder.Bands = "mean") -> None:
        super().__init__()
        path = path or os.environ.get(VARIABLE)
        if not path:
            raise UserError(f"set {VARIABLE} to a run or an export, or to {', '.join(DIGESTS)}, which comes with ajepa")
        self.encoder = load_encoder(path)
        self.bands = bands
        self.sampling_rate = self.encoder.sample_rate
        self.output_dim = self.encoder.width * (self.encoder.rows if bands == "concat" else 1)
        self.hop_size_in_ms = hop_ms

    def forward(self, audio: Tensor) -> Tensor:
        frames = self.encoder.frame_embeddings(audio, self.sampling_rate, hop_ms=self.hop_size_in_ms, bands=self.bands)
        return frames.embeddings
