"""The size of a network: its weights, its operations and the memory of an evaluation. Nothing is computed."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

FLOAT_BYTES = 4


class Size(NamedTuple):
    """The size of a network, for one image at a time."""

    parameters: int
    """Trained numbers."""
    tensors: int
    """Tensors of trained numbers."""
    flops: int
    """Floating-point operations of one evaluation, in products and convolutions; a multiplication and an addition count
    as two."""
    saved: int
    """Bytes of activations that the gradient needs."""
    largest: int
    """Bytes of the largest output of a module."""


def size_of(make: Callable[[], nn.Module], *inputs: Tensor | None) -> Size:
    """The size of the network that `make` returns, called with inputs of one image. It is built on PyTorch's device
    `meta`, in evaluation mode, because dropout draws from a generator that only training has."""
    saved, largest = 0, 0

    def add(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel() * tensor.element_size()
        return tensor

    def compare(module: nn.Module, arguments: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() * output.element_size())

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = make().eval()
        for module in network.modules():
            module.register_forward_hook(compare)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(add, lambda tensor: tensor):
            network(*(each if each is None else each.to("meta") for each in inputs))
    numbers = [parameter.numel() for parameter in network.parameters()]
    weights = sum(numbers) * FLOAT_BYTES  # autograd keeps them as well, once for all images
    return Size(sum(numbers), len(numbers), counter.get_total_flops(), max(saved - weights, largest), largest)
