"""The words that functions and command options take, in one place that imports nothing: a command shows its --help
and refuses a wrong option before torch is imported."""

from typing import Literal, get_args

SourceName = Literal["folder", "manifest", "parquet", "webdataset", "hdf5", "esc50", "speech_commands", "audioset"]
"""Where clips come from."""
LastSegment = Literal["pad", "drop"]
"""The shorter piece at the end of a recording that is cut: kept or left out."""
KeepOrDrop = Literal["keep", "drop"]
"""Clips that hold nothing new, copies and silence: kept, or moved to the bad rows."""
Branch = Literal["target", "context"]
"""Which encoder of a run: the EMA target encoder or the context encoder."""
Placement = Literal["wrap", "inside"]
"""Where blocks of a mask may lie: around both edges, or inside the grid."""
ObjectiveName = Literal["jepa", "mae", "ssast", "beats", "m2d", "eat", "lejepa"]
"""What an encoder is trained for; see `ajepa.objectives`."""
LossName = Literal["smooth_l1", "l1", "mse", "cosine"]
"""Distance between prediction and target representations."""
Precision = Literal["fp32", "bf16"]
"""What an encoder multiplies in."""
Pooling = Literal["mean", "mean+std", "bands mean+std"]
"""How a clip's patches become one vector; see `ajepa.model.pooling.pool`."""
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
ProbePooling = Literal[Pooling, "attentive"]
"""The same, or a pooling that is learned with the probe."""
Combine = Literal["concat", "stack"]
"""Several layers as one long vector, or along an axis of their own."""
Bands = Literal["mean", "concat"]
"""The rows of patches at one time: averaged, or as one long vector."""
Level = Literal["clip", "frame", "patch"]
"""What one embedding stands for."""
PredictionLevel = Literal["clip", "window"]
"""What one prediction of a fine-tuned model is of."""
Protocol = Literal["linear", "knn"]
"""How frozen features are probed."""
Evaluation = Literal[Protocol, "fine-tuned"]
"""How an encoder is scored in tables: by probes of frozen features, or trained on with a head."""
Unlabelled = Literal["auto", "negative", "drop", "refuse"]
"""What clips without a label are: an error, clips of no class, or left out."""
StoredWeights = Literal["float32", "float16"]
"""What the weights of an export are stored in."""
GraphFormat = Literal["onnx", "torch"]
"""What an encoder is exported to as one graph."""
ExportFormat = Literal["safetensors", "transformers", GraphFormat]
"""What an encoder is exported to: a folder that `load_encoder` or Hugging Face transformers reads, or a graph."""
