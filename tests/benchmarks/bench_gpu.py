"""The training step on one device: clips/s, share of the matmul rate, memory, beside the same step written naively.

Needs torch, numpy and pyarrow alone, so it runs on a bare GPU box: `make bench-gpu`, or
`PYTHONPATH=. python tests/benchmarks/bench_gpu.py`. Prints a table in Markdown with the card's name.
"""

import argparse
import dataclasses
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ajepa.audio.statistics import Statistics
from ajepa.config import PRESETS, Config
from ajepa.model.losses import normalise_targets
from ajepa.model.precision import autocast_dtype
from ajepa.model.vit import Encoder, Predictor, gather, patchify
from ajepa.shards.reader import Batch
from ajepa.training.async_metrics import resolve_metrics
from ajepa.training.flops import gemm_rate, step_flops
from ajepa.training.inputs import Inputs, on_device, prepare
from ajepa.training.step import TrainState, build_state, train_step

ROUNDS = 5
STATISTICS = Statistics(np.full(128, -4.0), np.full(128, 3.0), 1)
TOTAL = 100_000


def make_config(preset: str, batch: int, **train: object) -> Config:
    config = PRESETS[preset]
    return dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=batch, **train))


def make_state(config: Config, device: torch.device) -> TrainState:
    return build_state(config, STATISTICS, TOTAL, device)


def make_inputs(config: Config, count: int, device: torch.device) -> list[Inputs]:
    """Batches of noise on the device, each with its own masks."""
    generator = np.random.default_rng(0)
    size, shape = config.train.batch_size, (config.model.n_mels, config.model.crop_frames)
    noise = generator.standard_normal((size, *shape), np.float32).astype(np.float16)
    batches = (Batch(noise, np.arange(i * size, (i + 1) * size), np.arange(size)) for i in range(count))
    return list(on_device([prepare(config, batch, TOTAL, device.type == "cuda") for batch in batches], device))


def naive_step(state: TrainState, inputs: Inputs) -> float:
    """The step as it is often written: context padded to the full grid under a float attention mask, no fused
    optimizer, EMA a parameter at a time, and the loss read after every step. Same model, same arithmetic."""
    config, core = state.config, state.core
    dtype = autocast_dtype(config.train, state.device)
    with torch.autocast(state.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
        patches = patchify(state.normalise(inputs.log_mel))
        with torch.no_grad():
            target = gather(normalise_targets(core.target_encoder(patches)), inputs.targets)
        visible = torch.zeros(patches.shape[:2], device=state.device).scatter_(1, inputs.context, 1.0)
        hidden = torch.where(visible > 0, 0.0, float("-inf"))[:, None, None, :]
        encoded = gather(_masked_encoder(core.context_encoder, patches * visible[..., None], hidden), inputs.context)
        loss = F.smooth_l1_loss(_predict(core.predictor, encoded, inputs).float(), target.float())
    state.optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for _, p in core.trained_parameters()], config.train.grad_clip, foreach=False)
    state.optimizer.step()
    with torch.no_grad():
        for own, other in zip(core.target_encoder.parameters(), core.context_encoder.parameters(), strict=True):
            own.mul_(0.996).add_(other, alpha=0.004)
    return loss.item()


def _masked_encoder(encoder: Encoder, patches: Tensor, hidden: Tensor) -> Tensor:
    encoded = encoder(patches, mask=hidden)
    assert isinstance(encoded, Tensor)
    return encoded


def _predict(predictor: Predictor, encoded: Tensor, inputs: Inputs) -> Tensor:
    return predictor(encoded, inputs.context, inputs.targets)


def make_naive_state(config: Config, device: torch.device) -> TrainState:
    state = make_state(dataclasses.replace(config, train=dataclasses.replace(config.train, compile="off")), device)
    groups = [{"params": g["params"], "weight_decay": g["weight_decay"]} for g in state.optimizer.param_groups]
    state.optimizer = torch.optim.AdamW(groups, lr=config.train.lr, betas=config.train.betas, foreach=False)
    return state


@dataclass(frozen=True)
class Timing:
    seconds: float  # median of ROUNDS
    low: float
    high: float
    peak_bytes: int


def time_steps(work: Callable[[int], object], steps: int, device: torch.device) -> Timing:
    """Seconds a step of `work(step)`, after a warm-up that compiles."""
    for i in range(3):
        work(i)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for i in range(steps):
            work(i)
        if device.type == "cuda":
            torch.cuda.synchronize()
        rounds.append((time.perf_counter() - start) / steps)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    return Timing(statistics.median(rounds), min(rounds), max(rounds), peak)


def profile_parts(state: TrainState, inputs: Inputs) -> dict[str, float]:
    """Seconds of the parts of a step, one after the other (best of 3): where its time goes."""
    core, dtype = state.core, autocast_dtype(state.config.train, state.device)
    batch = Batch(inputs.log_mel.cpu().numpy(), np.arange(len(inputs.rows)), inputs.rows)

    def autocast() -> torch.autocast:
        return torch.autocast(state.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.perf_counter()
            work()
            if state.device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    def forward() -> Tensor:
        with autocast():
            return state.model(log_mel, inputs.context, inputs.targets)[0]

    with autocast():
        log_mel = state.normalise(inputs.log_mel)
        patches = patchify(log_mel)
        encoded = core.context_encoder(patches, inputs.context).detach()
    forward().backward()
    parts = {}
    with autocast():
        parts["target forward"] = best(lambda: core.targets(patches))
        parts["context forward"] = best(lambda: core.context_encoder(patches, inputs.context))
        parts["predictor forward"] = best(lambda: core.predictor(encoded, inputs.context, inputs.targets))
    whole = best(lambda: forward().backward())
    parts["backward"] = whole - best(forward)
    parts["gradient norm"] = best(lambda: nn.utils.clip_grad_norm_([p for _, p in core.trained_parameters()], 1e9))
    parts["optimizer"] = best(state.optimizer.step)
    parts["EMA"] = best(lambda: core.end_step(0.999))
    parts["masks"] = best(lambda: prepare(state.config, batch, TOTAL))
    return parts


def bench_row(preset: str, batch: int, variant: str, steps: int, device: torch.device, dtype: torch.dtype) -> str:
    masks = 4 if variant == "4 masks" else 1
    compiled = variant not in ("no compile", "naive") and device.type == "cuda"
    config = make_config(preset, batch, compile="on" if compiled else "off", masks_per_clip=masks)
    inputs = make_inputs(config, 4, device)
    if variant == "naive":
        state = make_naive_state(config, device)
        timing = time_steps(lambda i: naive_step(state, inputs[i % 4]), steps, device)
    else:
        state = make_state(config, device)
        timing = time_steps(lambda i: train_step(state, inputs[i % 4]), steps, device)
        resolve_metrics(state)
    rate = gemm_rate(device, dtype)  # right after, so that the clock is that of the step
    share = batch / timing.seconds * step_flops(config) / rate
    median, low, high = (batch / s for s in (timing.seconds, timing.high, timing.low))
    return (
        f"| {batch} | {variant} | {median:.0f} ({low:.0f}-{high:.0f}) | "
        f"{share:.2f} of {rate / 1e12:.3g} TFLOP/s | {timing.peak_bytes / 1e9:.1f} |"
    )


def bench(preset: str, batches: list[int], steps: int, device: torch.device, variants: list[str]) -> str:
    """A table: a row a batch size and variant."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    dtype = autocast_dtype(PRESETS[preset].train, device) or torch.float32
    lines = [
        f"`{preset}` on {name}, torch {torch.__version__}, {str(dtype).removeprefix('torch.')}:\n",
        "| batch | variant | clips/s | of the matmul rate (MFU) | peak memory, GB |",
        "|---|---|---|---|---|",
    ]
    for batch in batches:
        for variant in variants:
            try:
                lines.append(bench_row(preset, batch, variant, steps, device, dtype))
            except torch.OutOfMemoryError:
                lines.append(f"| {batch} | {variant} | out of memory | | |")
            print(lines[-1], flush=True)
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="base", choices=PRESETS)
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--steps", type=int, default=10, help="steps of a round; 5 rounds are timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    variants = ["compiled", "no compile", "4 masks", "naive"]
    parser.add_argument("--variants", nargs="+", default=variants, choices=variants)
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    table = bench(args.preset, args.batches, args.steps, device, args.variants)
    print(f"\n{table}\n")
    config = make_config(args.preset, args.batches[0], compile="off")
    parts = profile_parts(make_state(config, device), make_inputs(config, 1, device)[0])
    whole = sum(parts.values())
    print(f"| part of a step of {args.batches[0]}, not compiled | ms | share |\n|---|---|---|")
    for part, seconds in parts.items():
        print(f"| {part} | {seconds * 1e3:.2f} | {seconds / whole:.1%} |")
    return table


if __name__ == "__main__":
    main()
