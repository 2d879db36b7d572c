"""AdamW without the import of torch._dynamo."""

import inspect

import torch


class AdamW(torch.optim.AdamW):
    """torch's, without the wrappers that keep torch.compile out of its methods: each imports torch._dynamo, which takes
    every process that trains some seconds, and no optimizer is compiled here."""

    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
