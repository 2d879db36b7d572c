"""The common API of HEAR 2021 (https://hearbenchmark.com/hear-api.html): `hear-validator ajepa.hear -m RUN`, and
`python -m heareval.embeddings.runner ajepa.hear --model RUN`.
"""

from torch import Tensor, nn

from ajepa.errors import UserError
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import load_encoder
from ajepa.inference.shipped import DIGESTS

SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)  # the benchmark comes in these
MAX_HOP_MS = 50.0  # what HEAR suggests, for onsets that are to be right within 50 ms


class HearModel(nn.Module):
    """An encoder under the names that HEAR asks for.

    A scene is the mean and standard deviation over patches, 2 D numbers: bands apart would be 16 D (12,288 for `base`),
    more than HEAR's shallow classifiers can use of small data sets. A timestamp has the mean over bands, D numbers,
    every 40 ms.
    """

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        if encoder.sample_rate not in SAMPLE_RATES:
            raise UserError(f"HEAR has no audio at {encoder.sample_rate} Hz, only at {SAMPLE_RATES}")
        self.encoder = encoder
        self.sample_rate = encoder.sample_rate
        self.scene_embedding_size = 2 * encoder.width
        self.timestamp_embedding_size = encoder.width
        hops = (encoder.column_ms / n for n in (1, 2, 4, 8, 16))
        self.hop_ms = next(hop for hop in hops if hop <= MAX_HOP_MS)


def load_model(model_file_path: str = "") -> HearModel:
    """The encoder of a run folder, a checkpoint or an export, or one that comes with ajepa, by its name.

    Raises:
        UserError: no path, nothing there, or a sample rate that HEAR has no audio at.
    """
    if not model_file_path:
        names = ", ".join(DIGESTS)
        raise UserError(f"give the path of a run or an export, or {names}, which comes with ajepa (-m ENCODER)")
    return HearModel(load_encoder(model_file_path))


def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """Audio [n_sounds, n_samples] at model.sample_rate to [n_sounds, scene_embedding_size], on the model's device."""
    return model.encoder.clip_embeddings(audio, model.sample_rate, pooling="mean+std")


def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings every model.hop_ms, on the model's device.

    Each sees 160 ms and the window around it; its time is the middle of them. So the first is at 75 ms, and the last
    within 80 ms of the end.

    Args:
        audio: [n_sounds, n_samples] at model.sample_rate.

    Returns:
        [n_sounds, T, timestamp_embedding_size] and their times [n_sounds, T] in ms, both float32.
    """
    frames = model.encoder.frame_embeddings(audio, model.sample_rate, hop_ms=model.hop_ms)
    return frames.embeddings, frames.timestamps.float().expand(len(frames.embeddings), -1)
