"""The fine-tuning step on a CUDA device: the CPU's arithmetic, and no wait for the device."""
# ruff: noqa: E402  (skipped before it imports what a bare box lacks)

import numpy as np
import pytest
import torch

for needed in ("scipy", "soundfile", "soxr", "safetensors"):  # more than the other tests here need
    pytest.importorskip(needed)

from helpers.runs import SHORT_MODEL
from helpers.training_state import STATISTICS

from ajepa.config import FrontEndConfig
from ajepa.finetuning.clips import Inputs, prepare
from ajepa.finetuning.config import FinetuneConfig
from ajepa.finetuning.model import Classifier
from ajepa.finetuning.schedule import Schedule
from ajepa.finetuning.step import FinetuneState, build_state, train_step
from ajepa.inference.pretrained import random_encoder
from ajepa.shards.labels import Labels
from ajepa.shards.reader import Batch
from ajepa.training.async_metrics import resolve_metrics
from ajepa.training.inputs import on_device

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
CLIPS, FRAMES = 12, 208  # more frames than a window has, so clips have several
PLAIN = {"batch_size": CLIPS, "epochs": 5, "warmup_epochs": 0.0, "encoder_lr": 1e-3, "head_lr": 1e-2}
AUGMENTED = PLAIN | {"mixup": 0.5, "time_masks": 1, "frequency_masks": 1, "masked_keys": 0.2, "ema": 0.9}


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def make_state(device: str, **changes) -> tuple[FinetuneState, list[Inputs]]:
    """A state and the inputs of six steps, of clips of many lengths."""
    config = FinetuneConfig(**changes)
    rng = np.random.default_rng(0)
    labels = Labels(tuple("abcd"), np.arange(CLIPS) % 4, np.arange(CLIPS + 1))
    audio = random_encoder(SHORT_MODEL, 0, FrontEndConfig(clip_frames=FRAMES), STATISTICS)
    model = Classifier(audio, 4, "bands mean+std")
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    state = build_state(config, model, Schedule(config, CLIPS), False, torch.device(device))
    steps = []
    for step in range(6):
        log_mel = rng.normal(-4, 2, (CLIPS, 128, FRAMES)).astype(np.float16)
        frames = rng.integers(1, FRAMES + 1, CLIPS)
        batch = Batch(log_mel, step * CLIPS + np.arange(CLIPS), np.arange(CLIPS), frames)
        steps.append(prepare(config, labels, batch, pin=device == "cuda"))
    return state, list(on_device(iter(steps), state.device))


@pytest.mark.parametrize("changes", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_a_gpu_step_equals_the_cpu_step(changes):
    losses = {}
    for device in ("cpu", "cuda"):
        state, steps = make_state(device, **changes, precision="fp32")
        losses[device] = [float(train_step(state, inputs).loss) for inputs in steps]
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-3)


@pytest.mark.parametrize("changes", [PLAIN, AUGMENTED], ids=["plain", "augmented"])
def test_a_step_never_waits_for_the_device(changes):
    state, steps = make_state("cuda", **changes, precision="bf16", micro_batch=4)
    train_step(state, steps[0])  # allocates and initialises
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for inputs in steps[1:]:
            train_step(state, inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    resolve_metrics(state)
    assert state.step == 6
