"""Several training processes as one: what is summed over them, and what they agree on.

Started by `torchrun`, which sets the environment; gloo on processors, NCCL on GPUs. Without it, one process and no
collectives. Gradients are summed by hand rather than by DistributedDataParallel: losses are sums over the prompts of
all ranks, so the gradient is their plain sum, whatever a single rank had to do, nothing included.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.errors import GrainmillError

from ..network.load import usable_device

_Found = TypeVar("_Found")


class Distributed:
    """The processes of a run. A context: collectives are set up and torn down with it."""

    def __init__(self, device: str | None) -> None:
        self.launched = "WORLD_SIZE" in os.environ
        """By torchrun: collectives are used, also by a single rank."""
        self.ranks = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.device = usable_device(device)
        if str(self.device) == "cuda" and self.launched:
            self.device = usable_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")

    def __enter__(self) -> Self:
        if self.launched:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.launched:
            dist.destroy_process_group()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Iterable[float]) -> list[float]:
        """Sums numbers over all ranks; every rank gets the sums."""
        if not self.launched:
            return list(values)
        numbers = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        dist.all_reduce(numbers)
        return [float(each) for each in numbers.tolist()]

    def sum_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over all ranks; a missing one counts as zero."""
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not self.launched:
            return
        gradients: list[Tensor] = [each.grad for each in parameters if each.grad is not None]
        flat = torch.cat([each.flatten() for each in gradients])
        dist.all_reduce(flat)
        for gradient, part in zip(gradients, flat.split([each.numel() for each in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def gather(self, value: Any) -> list[Any]:
        """One value of each rank, in their order."""
        if not self.launched:
            return [value]
        found: list[Any] = [None] * self.ranks
        dist.all_gather_object(found, value)
        return found

    def agree(self, error: GrainmillError | None) -> None:
        """Raises on every rank what any of them met: none goes on to wait for one that has stopped."""
        for found in self.gather(error):
            if found is not None:
                raise found

    def on_first(self, work: Callable[[], _Found]) -> _Found | None:
        """Does something on the first rank alone while the others wait; what it raises, all raise."""
        done: _Found | None = None
        error: GrainmillError | None = None
        if self.is_first:
            try:
                done = work()
            except GrainmillError as found:
                error = found
        self.agree(error)
        return done

    def wait(self) -> None:
        """Waits for all ranks."""
        if self.launched:
            dist.barrier()
