"""An encoder as an MLflow model: MLflow runs this file itself when it loads one ("models from code", nothing pickled),
with a copy of the package `ajepa` beside it. So it imports nothing else of this project."""

from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from ajepa.inference.pretrained import load_encoder


class EncoderModel(PythonModel):
    """Waveforms to clip embeddings; the artifact "encoder" is an export folder."""

    def load_context(self, context: Any) -> None:
        self.encoder = load_encoder(context.artifacts["encoder"])

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """[B, samples] float32 to [B, D] float32.

        Args:
            params: "sample_rate" of the waveforms, in Hz; by default the encoder's own.

        Raises:
            TypeError, ValueError: as AudioEncoder.
        """
        rate = (params or {}).get("sample_rate") or self.encoder.sample_rate
        return self.encoder(np.atleast_2d(np.asarray(model_input, np.float32)), int(rate)).numpy()


mlflow.models.set_model(EncoderModel())
