# SPDX-FileCopyrightText: The ctkd contributors
# SPDX-License-Identifier: MIT
"""Several processes that work as one: ``torchrun --nproc-per-node N -m ctkd train ...``.

Each process takes its slice of every global batch. Sums and means over the batch go over all processes, with gradient,
so each of them computes the same loss, divides it by their number and back-propagates it; the backward pass of a sum
is a sum, and parameter gradients are added up in the end. All of it is the plain thing where there is one process.

Files belong to the leader, process 0: it alone writes, and decides what is there. The first process that fails reports
it; the others leave quietly. Importing this module does not import torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ctkd.errors import CtkdError, Elsewhere, RunFailed

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, who may be loading data or exporting."""
FAILED = "failed"
"""Counts in the store the processes that failed: the first of them reports."""
LOST = "another process of this run ended or no longer answers; what was saved before is kept"


class _State:
    """The group that this process is in; there is one at most."""

    host: ProcessGroup | None = None
    """Talks between hosts' memories, whatever device tensors are on."""
    joined = 0
    """How often this process has joined a group: each has keys of its own in the store."""
    parts: Callable[[Tensor], Tensor] | None = None
    """How sums go over the parts of a batch while one of them is computed."""


def launched() -> tuple[int, int]:
    """(rank, number of processes) as torchrun tells them; (0, 1) without it."""
    found = [os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")]
    return (int(found[0]), int(found[1])) if all(found) else (0, 1)


def rank() -> int:
    """Which process of the group this is."""
    return launched()[0] if _State.host is not None else 0


def world() -> int:
    """How many processes work together; 1 outside ``together``."""
    return launched()[1] if _State.host is not None else 1


def leads() -> bool:
    """Whether this process writes and speaks."""
    return rank() == 0


def reports(error: BaseException) -> bool:
    """Whether this process prints an error: the first one of a group that fails, or else process 0."""
    return not isinstance(error, Elsewhere) and (launched()[0] == 0 or getattr(error, "first_of_group", False))


@contextmanager
def together() -> Iterator[None]:
    """Join the processes that torchrun started, for as long as the block lasts; alone it does nothing.

    With GPUs each process gets that of its local rank as the current one, which ``cuda`` then means.

    Raises: Elsewhere in all processes but the one whose exception came first.
    """
    number, count = launched()
    if count == 1 or _State.host is not None:
        yield
        return
    store = _join(number, count)
    try:
        yield
        wait()  # nobody leaves while others still need it
    except BaseException as error:
        if not _first(store):
            raise Elsewhere(error.exit_code if isinstance(error, CtkdError) else 1) from error
        error.first_of_group = True  # type: ignore[attr-defined]
        raise
    finally:
        _leave()


@contextmanager
def apart() -> Iterator[None]:
    """One process's own affair inside the block, in which it is alone: checks on a network that only it has."""
    host, _State.host = _State.host, None
    try:
        yield
    finally:
        _State.host = host


def _join(number: int, count: int) -> Any:
    import torch
    import torch.distributed as dist

    if not dist.is_available():
        raise RunFailed("this PyTorch was built without torch.distributed; run one process")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, count, is_master=number == 0 and not hosted, timeout=TIMEOUT
    )
    _State.joined += 1
    prefix = f"ctkd/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_State.joined}"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    _State.host = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return store


def _leave() -> None:
    import torch.distributed as dist

    _State.host = None
    dist.destroy_process_group()


def _first(store: Any) -> bool:
    try:
        return bool(store.add(FAILED, 1) == 1)
    except RuntimeError:  # whoever kept the store is gone, and has reported
        return False


# Between hosts ---------------------------------------------------------------------------------------------------


def wait() -> None:
    """Until all processes are here."""
    gathered(None)


def gathered(value: T) -> list[T]:
    """Every process's value, in the order of ranks."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    with _connected():
        dist.all_gather_object(found, value, group=_State.host)
    return found


def from_leader(make: Callable[[], T]) -> T:
    """What ``make`` returns in the leader, which alone calls it."""
    return gathered(make() if leads() else None)[0]  # type: ignore[return-value]


@contextmanager
def leader_first() -> Iterator[None]:
    """The leader does the block, then the others: what it leaves on disk is there for them."""
    if not leads():
        wait()
    yield
    if leads():
        wait()
    wait()


def greatest(*numbers: int) -> list[int]:
    """For each number the greatest of any process: how they agree to stop at the same step."""
    if world() == 1:
        return list(numbers)
    import torch
    import torch.distributed as dist

    found = torch.tensor(numbers)
    with _connected():
        dist.all_reduce(found, dist.ReduceOp.MAX, group=_State.host)
    return found.tolist()


def whole(count: int) -> int:
    """The sum of every process's count, such as the size of the global batch. The device does not wait."""
    if world() == 1:
        return count
    import torch
    import torch.distributed as dist

    found = torch.tensor(count)
    with _connected():
        dist.all_reduce(found, group=_State.host)
    return int(found)


def check_same(value: object, what: str) -> None:
    """Raises: RunFailed if the processes hold different values of what must be the same."""
    if any(other != value for other in gathered(value)):
        raise RunFailed(
            f"{what} came out differently in the {world()} processes; it must depend on nothing but the configuration "
            "and what ctkd.api.batch_mean averages over all of them"
        )


def share(count: int) -> slice:
    """This process's contiguous slice of a batch; sizes differ by one at most."""
    return slice(rank() * count // world(), (rank() + 1) * count // world())


# Sums and means of tensors ---------------------------------------------------------------------------------------


def all_sum(value: Tensor) -> Tensor:
    """The sum of every process's tensor, all of one shape; its gradient is the sum of every process's gradient."""
    if _State.parts is not None:
        return _State.parts(value)
    if world() == 1:
        return value
    from ctkd.reduction import AllSum

    found: Tensor = AllSum.apply(value)  # type: ignore[no-untyped-call]
    return found


def batch_mean(values: Tensor, dim: int | list[int] | None = None) -> Tensor:
    """The mean over the global batch, with gradient, where ``values.mean(dim)`` is that of this process's slice.

    Args:
        values: (batch, ...). Slices may differ in size: each value counts once.
        dim: dimensions to average over, which include the batch; None is all. A scalar is averaged over processes.

    In one process it is the plain mean. It is a collective operation: all processes must call it, in the same order.
    """
    if world() == 1 and _State.parts is None:
        return values.mean() if dim is None else values.mean(dim)
    import torch

    dtype = torch.promote_types(values.dtype, torch.float32)  # counts must be exact
    local = values.sum(dtype=dtype) if dim is None else values.sum(dim, dtype=dtype)
    count = local.new_full((1,), values.numel() / max(1, local.numel()))
    total = all_sum(torch.cat([local.flatten(), count]))
    return (total[:-1] / total[-1]).reshape(local.shape).to(values.dtype)


@contextmanager
def in_parts(total: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, this process has one part of a batch, and ``total`` makes of its sum that over all parts."""
    _State.parts = total
    try:
        yield
    finally:
        _State.parts = None


def partial() -> bool:
    """Whether this is inside ``in_parts``."""
    return _State.parts is not None


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each parameter's gradient by the sum over all processes, in one message."""
    if world() == 1:
        return
    import torch

    gradients = [p.grad for p in parameters if p.grad is not None]
    summed = all_sum(torch.cat([gradient.flatten() for gradient in gradients]))
    pieces = torch.split(summed, [gradient.numel() for gradient in gradients])
    for gradient, piece in zip(gradients, pieces, strict=True):
        gradient.copy_(piece.view_as(gradient))


@contextmanager
def _connected() -> Iterator[None]:
    """Say plainly that somebody is gone."""
    try:
        yield
    except RuntimeError as error:
        raise RunFailed(LOST) from error
