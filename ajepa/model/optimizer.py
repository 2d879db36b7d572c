"""AdamW without the import of torch._dynamo, and the exponential moving average (EMA) of weights."""

import inspect

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class AdamW(torch.optim.AdamW):
    """torch's, without the wrappers that keep torch.compile out of its methods: each imports torch._dynamo, which takes
    every process that trains some seconds, and no optimizer is compiled here."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


def ema_update(average: nn.Module, current: nn.Module, momentum: float) -> None:
    """average <- momentum * average + (1 - momentum) * current, parameter by parameter, in place."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(current.parameters()), None)
