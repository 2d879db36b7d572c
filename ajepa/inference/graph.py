"""The whole path from waveform to embeddings as one graph, for ONNX and torch.export.

AudioEncoder is what Python uses. This computes the same numbers with tensor operations alone, no branch on values, so
one file serves every batch size and duration.

Shape legend: B clips, S samples, T frames of log-mel, R rows and C columns of patches, N windows of W columns, D width.
"""

import contextlib
import copy
import io
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as symbolic_shapes
from torch.nn import functional as F

from ajepa import storage
from ajepa.audio.logmel import filterbank
from ajepa.choices import GraphFormat
from ajepa.config import PATCH, FrontEndConfig
from ajepa.errors import UserError
from ajepa.inference.encoder import AudioEncoder
from ajepa.inference.pretrained import ORIGIN

OPSET = 18
INPUT, OUTPUTS = "waveform", ("clip_embeddings", "frame_embeddings")
ABOUT = "ajepa.json"  # extra file in a .pt2: what ONNX keeps in its metadata


class LogMelGraph(nn.Module):
    """LogMel with its DFT as a strided convolution, which every runtime has: [B, S] -> [B, n_mels, T]."""

    basis: Tensor
    filters: Tensor

    def __init__(self, config: FrontEndConfig) -> None:
        super().__init__()
        self.hop_length, self.log_epsilon = config.hop_length, config.log_epsilon
        window = torch.hann_window(config.win_length, dtype=torch.float64)
        sample = torch.arange(config.win_length, dtype=torch.float64)
        frequency = torch.arange(config.n_fft // 2 + 1, dtype=torch.float64)[:, None]
        angle = frequency * sample * (2 * math.pi / config.n_fft)
        basis = torch.cat([angle.cos(), angle.sin()]) * window
        self.register_buffer("basis", basis.float()[:, None])  # [2 * bins, 1, win_length]
        self.register_buffer("filters", filterbank(config).T[:, :, None].contiguous())  # [n_mels, bins, 1]
        # LogMel mirrors half an FFT on each side; only what the window inside it reaches is needed here.
        half = config.n_fft // 2
        left = half - (config.n_fft - config.win_length) // 2
        self.mirrored = (left, 2 * half - config.n_fft + config.win_length - left)

    def forward(self, waveform: Tensor) -> Tensor:
        padded = F.pad(waveform[:, None], self.mirrored, mode="reflect")
        real, imaginary = F.conv1d(padded, self.basis, stride=self.hop_length).chunk(2, dim=1)
        power = real.square() + imaginary.square()
        return torch.log(F.conv1d(power, self.filters) + self.log_epsilon)


class EncoderGraph(nn.Module):
    """[B, S] float32 at the front end's rate -> clip embeddings [B, D] (mean over patches) and frame embeddings
    [B, C, D] (mean over the rows of a column of 16 frames), as AudioEncoder gives them by default.

    It holds a copy of the weights, on the CPU and in float32. All windows go through the encoder at once, so memory
    grows with B * S: cut hours into pieces.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, encoder: AudioEncoder) -> None:
        super().__init__()
        self.log_mel = LogMelGraph(encoder.front_end)
        self.encoder = copy.deepcopy(encoder.encoder).cpu().float().eval().requires_grad_(False)
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(encoder.normalise, name).detach().cpu().clone())

    def forward(self, waveform: Tensor) -> tuple[Tensor, Tensor]:
        rows, window = self.encoder.config.grid
        log_mel = self.log_mel(waveform).half().float()  # float16, as shards hold them
        columns = torch.sym_max((log_mel.shape[-1] + PATCH // 2) // PATCH, 1)  # model.pooling.valid_columns
        normalised = F.pad((log_mel - self.mean) / self.std, (0, (window + 1) * PATCH))
        patches = normalised.unflatten(1, (rows, PATCH)).unfold(-1, PATCH, PATCH).permute(0, 3, 1, 2, 4)
        # [B, columns and padding, R, bins, frames]. The windows of model.pooling.cover, all W columns wide. With C = 10
        # and W = 4 there are N = 3 of them, and they begin at i * 6 // 2: at 0, 3 and 6.
        windows = (columns + window - 1) // window
        gaps, slack = torch.sym_max(windows - 1, 1), torch.sym_max(columns - window, 0)
        start = torch.arange(windows) * slack // gaps
        place = (start[:, None] + torch.arange(window)).flatten()
        parts = patches.index_select(1, place).reshape(-1, window, rows, PATCH * PATCH)
        # Of shorter input than a window the rest is padding, barred as keys.
        seen = (torch.arange(window) < columns).expand(rows, window).reshape(1, 1, 1, rows * window)
        tokens = self.encoder(parts.transpose(1, 2).flatten(1, 2), mask=seen)  # [B * N, R * W, D]
        tokens = tokens.unflatten(1, (rows, window)).mean(dim=1).reshape(waveform.shape[0], -1, tokens.shape[-1])
        # Windows begin more than W (N - 2) / (N - 1) columns apart, so a column lies in two of them at most: the last
        # one that begins at or before it, and perhaps the one before that. Column 3 above lies in windows 1 and 0,
        # column 4 in window 1 alone. Window i begins at or before column c if i * slack < (c + 1) * gaps.
        column, divisor = torch.arange(columns), torch.sym_max(slack, 1)
        last = (((column + 1) * gaps + divisor - 1) // divisor - 1).clamp_max(windows - 1)
        before = (last - 1).clamp_min(0)
        offset = column - start.index_select(0, before)  # in the window before
        in_both = ((last > 0) & (offset < window)).float()[:, None]
        in_last = tokens.index_select(1, last * window + column - start.index_select(0, last))
        in_before = tokens.index_select(1, before * window + offset.clamp_max(window - 1))
        frames = (in_last + in_before * in_both) / (1 + in_both)
        return frames.mean(dim=1), frames


def describe_graph(encoder: AudioEncoder) -> dict[str, str]:
    """What a file says of itself: input, times of its frames, and where its weights come from."""
    values = {
        "sample_rate": encoder.sample_rate,
        "min_samples": encoder.front_end.min_samples,
        "frame_hop_ms": encoder.column_ms,
        "first_frame_ms": encoder.first_ms,
        "embedding_size": encoder.width,
    }
    origin = {name: encoder.about[name] for name in (*ORIGIN, "digest") if name in encoder.about}
    return {f"ajepa.{name}": str(value) for name, value in (values | origin).items()}


def export_program(encoder: AudioEncoder) -> torch.export.ExportedProgram:
    """EncoderGraph as a torch.export program, for any batch and any duration of at least one window of the front end
    (400 samples). Call its `.module()` with a waveform [B, S].

    Raises:
        UserError: this torch can only export graphs for batches of two and more.
    """
    if not can_export():
        raise UserError(f"a graph of any batch size needs a newer torch than {torch.__version__}: upgrade it")
    samples = torch.export.Dim("samples", min=encoder.front_end.min_samples)
    longest = encoder.encoder.config.crop_frames * encoder.front_end.hop_length
    example = torch.zeros(2, 5 * longest // 2)
    # Else every size seen as 2 or more would be taken never to be 1: the batch, the windows and the columns.
    with symbolic_shapes.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # set when imported
        return torch.export.export(
            EncoderGraph(encoder),
            (example,),
            dynamic_shapes={"waveform": {0: torch.export.Dim("batch", min=1), 1: samples}},
            strict=False,
        )


def can_export() -> bool:
    """Whether this torch exports a graph that a size of 1 fits, too: 2.6 does not, 2.11 does."""
    return hasattr(symbolic_shapes, "backed_size_oblivious")


def save_program(encoder: AudioEncoder, path: str) -> None:
    """Write export_program into one `.pt2` file (local or URI): `torch.export.load(path).module()(waveform)`.

    Its extra file ajepa.json holds describe_graph.
    """
    buffer = io.BytesIO()
    about = json.dumps(describe_graph(encoder), indent=1)
    torch.export.save(export_program(encoder), buffer, extra_files={ABOUT: about})
    _write(path, buffer.getvalue())


def export_onnx(encoder: AudioEncoder, path: str) -> None:
    """Write EncoderGraph as one ONNX file (local or URI) of opset 18, batch and time dynamic, describe_graph in its
    metadata. Input `waveform` [batch, samples]; outputs `clip_embeddings` and `frame_embeddings`.

    Raises:
        UserError: onnx or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  what torch.onnx writes with
    except ImportError as error:
        raise UserError(f"an ONNX export needs the extra `onnx` ({error}): pip install 'ajepa[onnx]'") from error
    program = export_program(encoder)
    with _quiet():
        exported = torch.onnx.export(
            program, (), dynamo=True, opset_version=OPSET, input_names=[INPUT], output_names=OUTPUTS, verbose=False
        )
    assert exported is not None
    model = exported.model_proto
    (waveform,), (clips, frames) = model.graph.input, model.graph.output
    for value, names in ((waveform, ("batch", "samples")), (clips, ("batch",)), (frames, ("batch", "columns"))):
        for dimension, name in zip(value.type.tensor_type.shape.dim, names, strict=False):
            dimension.dim_param = name
    del model.graph.value_info[:]  # named after symbols of the export
    onnx.helper.set_model_props(model, describe_graph(encoder))
    onnx.checker.check_model(model)
    _write(path, model.SerializeToString())


@dataclass(frozen=True)
class Exporter:
    """A format of graphs."""

    file: str  # its name in the output folder
    write: Callable[[AudioEncoder, str], None]
    load: str  # how Python runs it, with {path}


EXPORTERS: dict[GraphFormat, Exporter] = {
    "onnx": Exporter(
        "encoder.onnx", export_onnx, 'onnxruntime.InferenceSession("{path}").run(None, {{"waveform": waveform}})'
    ),
    "torch": Exporter("encoder.pt2", save_program, 'torch.export.load("{path}").module()(waveform)'),
}


def export_graph(encoder: AudioEncoder, folder: str, format: GraphFormat) -> str:
    """Write an encoder's graph (one of EXPORTERS) into a folder, made where it is missing, and return its path.

    Raises:
        UserError: the file is there, or `folder` is one.
    """
    folder = storage.absolute(str(folder))
    path = storage.join(folder, EXPORTERS[format].file)
    taken = next((p for p in (folder, path) if storage.path_type(p) == "file"), None)
    if taken is not None:
        raise UserError(f"the output {taken!r} exists: choose another, or delete it first")
    storage.make_folder(folder)
    EXPORTERS[format].write(encoder, path)
    return path


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about packages and functions of its own."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def _write(path: str, data: bytes) -> None:
    with storage.atomic_output(path) as stream:
        stream.write(data)
