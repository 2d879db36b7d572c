"""What the tests of preprocess.py --append and of copies share: options, and a line in place of the report."""

from pathlib import Path

from ajepa import storage
from ajepa.config import FrontEndConfig
from pipelines.preprocess import PreprocessArgs

FRONT_END = FrontEndConfig(clip_frames=128)


def options(parts: Path, folder: Path, mlflow_uri: str, **more) -> PreprocessArgs:
    return PreprocessArgs(
        source="folder", input=str(parts / "old"), output=str(folder / "shards"), labels_from_folders=True,
        mlflow_uri=mlflow_uri, front_end=FRONT_END, clips_per_shard=3, **more,
    )  # fmt: skip


def save_line(dataset, *_):
    """In place of the end report, whose pictures take longer than these jobs."""
    storage.write_text(storage.join(dataset.path, "report.md"), dataset.content_hash)
