"""Which attention kernel a group uses: what could run is compared with the formula, then timed on the pool's shape.

``auto`` takes the fastest of the kernels that deviate by rounding only; one that quantises is used where the pool names
it. Rank 0 finds out and all ranks take the same, so that no layout depends on which rank was quicker.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from msgspec import Struct

from workers.engine.devices.attention import Attention, SdpaMath
from workers.engine.devices.base import Device
from workers.engine.errors import CannotLoad
from workers.engine.parallel.collective import collective
from workers.engine.parallel.mesh import Mesh

AUTO = "auto"
#: A kernel that is faster by less than this share stays behind the one in front of it: noise decides nothing.
MARGIN = 0.03
#: Timed calls of each kernel, after one that is not counted.
CALLS = 3
#: Tokens of the comparison with the formula: more queries than keys, neither a round number.
_QUERIES, _KEYS = 197, 131
#: Never worth measuring: the formula itself takes memory by the square of the length.
_NOT_TIMED = SdpaMath.name


class Shape(Struct, frozen=True):
    """One attention call on one rank: tokens of the whole sequence, this rank's heads, numbers per head."""

    tokens: int
    heads: int
    size: int


class Tried(Struct, frozen=True):
    """What was found out about one kernel.

    Attributes:
        name: of the kernel.
        why_not: why it is not used; empty if it may be.
        deviation: relative, root mean square, from the formula in float32; None: not compared.
        seconds: median of its timed calls; None: not timed.
    """

    name: str
    why_not: str = ""
    deviation: float | None = None
    seconds: float | None = None


class Choice(Struct, frozen=True):
    """The kernel that a group uses, and how that came about."""

    name: str
    tried: tuple[Tried, ...]

    def told(self) -> str:
        """For logs and the lease: the choice, with times where kernels competed, and what was turned down by name."""
        timed = [f"{one.name} {1000 * one.seconds:.3g} ms" for one in self.tried if one.seconds is not None]
        return f"attention {self.name}" + (f" ({', '.join(timed)})" if len(timed) > 1 else "")


def choose(
    wanted: str,
    device: Device,
    shape: Shape,
    dtype: torch.dtype,
    clock: Callable[[], float] = time.perf_counter,
) -> Choice:
    """The kernel for that wish on this device. Not collective.

    Args:
        wanted: ``auto``, or a kernel's name.
        device: where it is to run.
        shape: to measure on.
        dtype: of queries, keys and values.
        clock: for the measurement.

    Raises:
        CannotLoad: the kernel that the pool names cannot be used here, and why; or none can.
    """
    kernels = device.kernels()
    if wanted != AUTO:
        named = next((one for one in kernels if one.name == wanted), None)
        if named is None:
            known = ", ".join(one.name for one in kernels)
            raise CannotLoad(f"attention: {wanted!r} is none of this device's kernels: {known}")
        tried = compare(named, device, shape, dtype)
        if tried.why_not:
            raise CannotLoad(f"attention: {wanted} {tried.why_not}")
        return Choice(wanted, (tried,))
    found = [compare(one, device, shape, dtype) for one in kernels if one.is_exact and one.name != _NOT_TIMED]
    usable = [one for one in found if not one.why_not]
    if not usable:
        reasons = "; ".join(f"{one.name} {one.why_not}" for one in found)
        raise CannotLoad(f"attention: no kernel can be used here: {reasons}")
    if device.kind != "cpu" and len(usable) > 1:
        by_name = {one.name: one for one in kernels}
        found = [one if one.why_not else measure(by_name[one.name], one, device, shape, dtype, clock) for one in found]
        usable = [one for one in found if not one.why_not] or usable
    best = usable[0]
    for one in usable[1:]:
        if one.seconds is not None and (best.seconds is None or one.seconds < best.seconds * (1 - MARGIN)):
            best = one
    return Choice(best.name, tuple(found))


def compare(kernel: Attention, device: Device, shape: Shape, dtype: torch.dtype) -> Tried:
    """Whether the kernel is there, and how far it is from the formula on a small input."""
    why_not = kernel.missing(device.torch_device, dtype)
    if why_not:
        return Tried(kernel.name, why_not)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, length, shape.heads, shape.size, generator=generator).to(device.torch_device, dtype)
        for length in (_QUERIES, _KEYS, _KEYS)
    )
    with torch.no_grad():
        exact, lse = SdpaMath().with_lse(q.float(), k.float(), v.float())
        try:
            made = kernel(q, k, v).float()
            told = kernel.with_lse(q, k, v)[1] if kernel.gives_lse else lse
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            return Tried(kernel.name, f"failed on a small input: {_first_line(error)}")
    deviation = float((made - exact).norm() / exact.norm())
    # The log-sum-exp is a logarithm: its absolute error is the relative one of what it stands for.
    off = float((told - lse).abs().max())
    worst = max(deviation, off / max(1.0, float(lse.abs().max())))
    if not worst <= kernel.tolerance(dtype):  # also where it is not a number
        return Tried(
            kernel.name, f"deviates by {worst:.2g} from the formula, beyond its {kernel.tolerance(dtype):g}", worst
        )
    return Tried(kernel.name, "", deviation)


def measure(
    kernel: Attention, tried: Tried, device: Device, shape: Shape, dtype: torch.dtype, clock: Callable[[], float]
) -> Tried:
    """The kernel's median seconds on that shape; turned down if it runs out of memory there."""
    try:
        q, k, v = (
            torch.randn(1, shape.tokens, shape.heads, shape.size, device=device.torch_device, dtype=dtype)
            for _ in range(3)
        )
        seconds = []
        with torch.no_grad():
            for _ in range(CALLS + 1):
                device.synchronise()
                began = clock()
                kernel(q, k, v)
                device.synchronise()
                seconds.append(clock() - began)
    except (RuntimeError, MemoryError) as error:
        if device.is_sticky(error):
            raise
        device.clear()
        return Tried(kernel.name, f"failed on {shape.tokens} tokens: {_first_line(error)}", tried.deviation)
    return Tried(kernel.name, "", tried.deviation, statistics.median(seconds[1:]))


def settle(wanted: str, device: Device, mesh: Mesh, shape: Shape, dtype: torch.dtype) -> Choice:
    """Rank 0's choice, in use on all ranks. Collective.

    Raises:
        CannotLoad: on all ranks: as ``choose``, or the kernel that rank 0 took cannot be used on another.
    """
    names = [one.name for one in device.kernels()]
    choice: Choice | None = None
    failure = f"attention: rank 0 found no kernel for {wanted!r}"
    if mesh.rank == 0:
        try:
            choice = choose(wanted, device, shape, dtype)
        except CannotLoad as error:
            failure = str(error)
    if mesh.world > 1:
        taken = _told(names.index(choice.name) if choice is not None else -1, device, mesh)
        if mesh.rank > 0 and taken >= 0:
            tried = compare(device.kernels()[taken], device, shape, dtype)
            if tried.why_not:
                failure = f"attention: {tried.name} on rank {mesh.rank} {tried.why_not}"
            else:
                choice = Choice(tried.name, (tried,))
        if _least(int(choice is not None), device, mesh) == 0 and choice is not None:
            failure, choice = f"attention: {choice.name} cannot be used on every rank", None
    if choice is None:
        raise CannotLoad(failure)
    use(choice, device)
    return choice


@collective()
def _told(value: int, device: Device, mesh: Mesh) -> int:
    said = torch.tensor([value], dtype=torch.int64, device=device.torch_device)
    dist.broadcast(said, src=0, group=mesh.everyone)
    return int(said)


@collective()
def _least(value: int, device: Device, mesh: Mesh) -> int:
    said = torch.tensor([value], dtype=torch.int64, device=device.torch_device)
    dist.all_reduce(said, op=dist.ReduceOp.MIN, group=mesh.everyone)
    return int(said)


def use(choice: Choice, device: Device) -> None:
    """Make that choice the device's kernel."""
    device.kernel = next(one for one in device.kernels() if one.name == choice.name)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
