"""Names of metrics in MLflow: a group before each, by which its pages section charts and sort tables. Histories and
result files keep the plain names."""

from typing import Final

GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "loss": (
        "loss", "prediction_loss", "patch_loss", "clip_loss", "sigreg", "info_nce", "reconstruction", "code_accuracy",
        "code_perplexity",
    ),
    "representation": (
        "effective_rank", "patch_rank", "clip_cosine", "patch_cosine", "patch_cosine_centred", "position_share",
        "feature_std", "feature_std_min", "prediction_std", "target_std",
    ),
    "optimizer": ("lr", "encoder_lr", "head_lr", "weight_decay", "ema", "loss_scale", "grad_norm", "epoch"),
    "throughput": ("seconds_per_step", "clips_per_second", "data_wait", "checkpoint_wait", "mfu", "seconds"),
    "data": ("clips_ok", "clips_bad", "hours", "copies", "copies_elsewhere", "silent",
             "labelled_clips"),
}  # fmt: skip
FAMILIES: Final = {
    "online_": "probe",
    "validation_": "validation",
    "test_": "test",
    "labels_": "test",
}  # groups by how names begin
PROBE: Final = "probe"  # scores of frozen features, whose names depend on the features
OTHER: Final = "other"  # metrics that no group names: a new one is recorded all the same


def group_of(name: str) -> str:
    """The one group of a metric, by its plain name."""
    for group, names in GROUPS.items():
        if name in names:
            return group
    return next((group for start, group in FAMILIES.items() if name.startswith(start)), OTHER)


def grouped(name: str, group: str | None = None, part: str = "") -> str:
    """A metric's name in MLflow: "loss" is "loss/loss", of one of several trainings "loss/loss seed-0-fold-1": what
    stands before the last slash is a section of MLflow's charts.

    Args:
        name: plain.
        group: where the name does not tell it.
        part: of a run of several trainings, "" or with a slash at its end.
    """
    return f"{group or group_of(name)}/{name} {part.strip('/').replace('/', ' ')}".rstrip()
