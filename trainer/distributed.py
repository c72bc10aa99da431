"""The group of processes that train together: one under plain Python, as many as torchrun starts.

Wires torch.distributed (nccl on GPUs, gloo on CPUs) and owns nothing of order, data or loss.
"""

from __future__ import annotations

import os
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

T = TypeVar("T")
_PATIENCE = 600.0  # seconds for all ranks to have come, whose imports a busy disk makes slow


class RankLost(RuntimeError):
    """Another process of the group has ended; this one cannot go on alone."""


@dataclass(frozen=True)
class Group:
    """This process's rank of `world`, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` on the device, its gradients averaged over the group; the buffers stay each rank's own."""
        module.to(self.device)
        if self.world == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        # Of a 1x1x1 kernel the memory layout has several descriptions; that they differ costs nothing.
        warnings.filterwarnings("ignore", "Grad strides do not match")
        with warnings.catch_warnings():  # the successor of broadcast_buffers is not in every torch we allow
            warnings.simplefilter("ignore", FutureWarning)
            return DistributedDataParallel(module, device_ids=ids, broadcast_buffers=False)

    @contextmanager
    def no_sync(self, module: nn.Module, hold: bool) -> Iterator[None]:
        """Keeps the gradients that a wrapped `module` gathers in the block to this rank, if `hold`."""
        hold = hold and isinstance(module, DistributedDataParallel)
        with module.no_sync() if hold else nullcontext():  # type: ignore[operator]
            yield

    def sum(self, values: Tensor) -> Tensor:
        """`values` added up over the group, on every rank."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank."""
        return bool(self.sum(torch.tensor(float(flag), device=self.device)) > 0)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast_from_rank0(self, make: Callable[[], T]) -> T:
        """Runs `make` on rank 0; every rank gets its result or its error (with an OSError cause)."""
        if self.world == 1:
            return make()
        made: list[Any] = [None, None, None]
        if self.first:
            try:
                made[0] = make()
            except Exception as error:  # its cause is not pickled with it
                cause = error.__cause__
                made[1:] = error, OSError(str(cause)) if isinstance(cause, OSError) else None
        torch.distributed.broadcast_object_list(made)
        if made[1] is not None:
            raise made[1] from made[1].__cause__ or made[2]
        return made[0]

    def wait(self) -> None:
        """Returns when every rank has come here."""
        if self.world > 1:
            torch.distributed.barrier()

    def average_statistics(self, modules: Iterable[nn.Module]) -> None:
        """Makes the running statistics of batch normalisation the mean over ranks, on every rank.

        Each rank normalises by its own batch, as the published training did. Running statistics are linear in
        the batches', so averaging them here or there, once or often, gives the same.
        """
        for norm in (m for module in modules for m in module.modules() if isinstance(m, _BatchNorm)):
            for statistic in (norm.running_mean, norm.running_var):
                if statistic is not None:
                    self.sum(statistic).div_(self.world)


@contextmanager
def join() -> Iterator[Group]:
    """Joins the group that torchrun's environment names, or a group of one, for the length of the block.

    Raises RankLost where another process of it ends within the block.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" not in os.environ:
        yield Group(0, 1, device)
        return
    store = _apart(next(torch.distributed.rendezvous("env://"))[0], rank, world)
    if os.environ.get("LOCAL_WORLD_SIZE") == str(world):  # one machine: nobody else is to be heard
        loopback = "lo0" if sys.platform == "darwin" else "lo"
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, loopback)
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=world)
    try:
        yield Group(rank, world, device)
    except RuntimeError as error:
        if not isinstance(error, torch.distributed.DistBackendError) and "gloo" not in str(error):
            raise
        raise RankLost(
            "another rank has ended (its message says why): repeat the command, or let torchrun do so with "
            "--max-restarts, and it goes on from the last checkpoint"
        ) from error
    finally:
        torch.distributed.destroy_process_group()


def _apart(store: Store, rank: int, world: int) -> Store:
    """A part of `store` for this group's processes alone. Raises RankLost where one does not come.

    torchrun's store outlives its processes, so a restarted process could read the address of a dead one
    (github.com/pytorch/pytorch/issues/135712). Each rank therefore asks rank 0 under a fresh name, and is
    answered with a prefix that is new for this group.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + _PATIENCE

    def wait() -> None:
        if time.monotonic() > end:
            raise RankLost(f"the other ranks did not come in {_PATIENCE:.0f} s: read their nodes' messages")
        time.sleep(0.02)

    if rank > 0:
        store.set(f"ask/{rank}", mine)
        while not store.check([f"told/{mine}"]):
            wait()
        group = store.get(f"told/{mine}").decode()
        store.set(f"here/{group}/{rank}", "")
        return PrefixStore(group, store)
    absent = set(range(1, world))
    while absent:
        for other in sorted(absent):
            if store.check([f"here/{mine}/{other}"]):
                absent.remove(other)
            elif store.check([f"ask/{other}"]):  # maybe a dead process asked: look again
                store.set(f"told/{store.get(f'ask/{other}').decode()}", mine)
        if absent:
            wait()
    return PrefixStore(mine, store)
