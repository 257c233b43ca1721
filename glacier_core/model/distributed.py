"""Training by several processes: which of them this one is, and what they share.

PyTorch's launcher starts them, on one machine or many: `torchrun`, or `glacier train --processes`.
Each takes its part of every batch; sums over pixels are taken over all of them, so that together
they do what one process would do.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from glacier_core.errors import InputError, ServiceError
from glacier_core.model.predictor import choose_device

Value = TypeVar("Value")

# What the first process does alone (opening an MLflow run, writing a checkpoint) takes a minute at
# worst; a machine that is switched off is noticed no other way.
_PATIENCE = timedelta(minutes=10)
_meetings = itertools.count()


@dataclass(frozen=True)
class Processes:
    """All processes of a training, seen from this one.

    Attributes:
        rank: number of this process. Number 0 alone writes files, logs and shows progress.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, length: int) -> slice:
        """Which of so many things in a row are this process's. May be none."""
        return slice(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all processes, with its gradient. Each has to call it."""
        if self.count == 1:
            return x
        result: Tensor = _Total.apply(x)  # type: ignore[no-untyped-call]
        return result

    def from_first(self, value: Value) -> Value:
        """The value that process 0 has, when it has it. Each has to call it."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def learning_together(self, network: nn.Module, device: torch.device) -> nn.Module:
        """What to call in training: averages gradients over the processes, as they are made.

        Batch normalisation inside `network` is made to take its statistics over all of them;
        parameters, buffers and the names of both stay as they are.
        """
        if self.count == 1:
            return network
        if device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        else:
            _share_statistics(network, self.total)
        # A 1 x 1 convolution's gradient has other strides than its weights, and lies the same.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        # Statistics are the same in all processes already: none to hand round before each step.
        return DistributedDataParallel(network, forward_sync_buffers=False)


class _Total(torch.autograd.Function):
    """Sum over processes. Backwards it is the sum as well: each one's input is in all results."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


class _SharedBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics of all processes' batches, on CPUs.

    PyTorch's own, `nn.SyncBatchNorm`, is for GPUs alone.
    """

    def __init__(self, plain: nn.BatchNorm2d, total: Callable[[Tensor], Tensor]) -> None:
        super().__init__(plain.num_features, plain.eps, plain.momentum)
        self.weight, self.bias = plain.weight, plain.bias
        self._buffers = plain._buffers
        self._total = total

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, height, width) to the same; the batch may be empty here."""
        if not self.training:
            return super().forward(x)
        values = x.float()
        here = torch.full((1,), float(x.numel() // x.shape[1]))
        sums = self._total(torch.cat([values.sum(dim=(0, 2, 3)), here]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = values - mean.view(1, -1, 1, 1)
        variance = self._total(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            # The spread in the population, as PyTorch keeps it: over one value less.
            spread = variance * count / (count - 1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(spread, self.momentum)
            self.num_batches_tracked.add_(1)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)).to(x.dtype)


def _share_statistics(network: nn.Module, total: Callable[[Tensor], Tensor]) -> None:
    for block in list(network.modules()):
        for name, layer in list(block.named_children()):
            if isinstance(layer, nn.BatchNorm2d):
                setattr(block, name, _SharedBatchNorm(layer, total))


# --- A process that the launcher started -----------------------------------------------------


@contextmanager
def joined(device: str) -> Iterator[Processes]:
    """Meet the other processes of this training, if PyTorch's launcher started this one.

    They talk through NCCL where they train on GPUs, else through gloo.

    Args:
        device: as in conf/train.yaml. Each process of a machine gets a GPU of its own.

    Raises:
        InputError: a machine has fewer GPUs than processes.
    """
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield Processes()
        return
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    store, rank, count = next(rendezvous("env://"))
    # What one training left there is no answer for the next one.
    store = dist.PrefixStore(f"glacier/{next(_meetings)}", store)  # type: ignore[attr-defined]
    try:
        cuda = choose_device(device).type == "cuda"
        if cuda:
            _take_gpu()
        dist.init_process_group(
            # Numbers that are counted on the CPU go through gloo in any case.
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=count,
            timeout=_PATIENCE,
        )
        processes = Processes(rank, count)
        yield processes
        processes.from_first(None)  # nobody is done before the result is in place
    except InputError as error:
        # What all of them find wrong, the first to find it says.
        if not _heard_first(store, str(error)):
            sys.exit(2)
        raise
    dist.destroy_process_group()


def _take_gpu() -> None:
    wanted, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if wanted > there:
        raise InputError(
            f"{wanted} processes on a machine with {there} GPUs: start one for each GPU, or set "
            "device: cpu in conf/train.yaml"
        )
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def _heard_first(store: Any, message: str) -> bool:
    try:
        return bool(store.add(message, 1) == 1)
    except RuntimeError:  # the launcher has ended: nobody else is left to say it
        return True


def _end_with(launcher: int) -> None:
    """A launcher that is killed ends nobody; its processes would train on beside the next ones."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


# --- The launcher ----------------------------------------------------------------------------


def launch(processes: int, command: Sequence[str], threads: int) -> None:
    """Run a Python module as several processes of this machine, and wait for them.

    Args:
        processes: how many.
        command: the module and its arguments.
        threads: of each, for PyTorch's work on the CPU, unless OMP_NUM_THREADS says another number.

    Raises:
        SystemExit: with 2: they ended for what users can mend, and have said what; with 128 and
            its number: after a signal, as shells say it.
        ServiceError: one of them died; the others were ended.
    """
    import logging

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # It tells at length what ends up in one line below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",  # any free port
        local_addr="127.0.0.1",
        max_restarts=0,
    )
    try:
        # -P: the folder that it is called in is a project's, and no place to import from.
        elastic_launch(config, sys.executable)("-P", "-m", *command)
    except SignalException as error:  # somebody ended it, and it has ended them
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode == 2:
            sys.exit(2)
        raise ServiceError(
            f"process {number} of {processes} ended ({_reason(failure.exitcode)}), and so the "
            "others were ended too. Run the same command again: it goes on after the last whole "
            "epoch"
        ) from None


def _reason(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
