"""What a GPU would launch, and how often the host would wait, counted on a CPU."""

from collections import Counter
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

# How large their result is, or what number they hold, only the device knows.
WAITING = {
    aten._local_scalar_dense,  # item(), bool(), an index of no dimension
    aten.nonzero,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.masked_select,
    aten.bincount,
    aten.equal,
}
WITHOUT_LAUNCH = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.lift_fresh,
    aten.resize_,
    aten._local_scalar_dense,
}


class DeviceWork:
    """Counts of one stretch of code.

    Args:
        operations: calls of PyTorch's operators by name, without views.
        waits: what the host waits for, by name.
    """

    def __init__(self) -> None:
        self.operations: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __str__(self) -> str:
        return f'waits {dict(self.waits)}, operations {dict(self.operations)}'


@contextmanager
def counted():
    """Count the operations and waits of tensors that are taken to lie on a GPU.

    `torch.tensor` without a device makes a tensor of the host. An operator that
    launches several kernels, or one of mmcv's that waits inside, counts once.

    Yields:
        DeviceWork: filled in while the context is open.
    """
    work = DeviceWork()
    with _Operators(work), _Methods(work):
        yield work


class _Operators(TorchDispatchMode):
    def __init__(self, work: DeviceWork) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        if not func.is_view and packet not in WITHOUT_LAUNCH:
            self.work.operations[packet.__name__] += 1
        if packet in WAITING or _looks_for_true(func, packet, args, kwargs):
            self.work.waits[packet.__name__] += 1
        return func(*args, **kwargs)


def _looks_for_true(func, packet, args, kwargs) -> bool:
    """Whether an index is a mask, or the size of the result has to be asked for."""
    if packet is aten.repeat_interleave:
        return kwargs.get('output_size') is None
    if packet not in (aten.index, aten.index_put, aten.index_put_):
        return False
    has_mask = any(index is not None and index.dtype == torch.bool for index in args[1])
    # One number behind a mask is filled in.
    return has_mask and (packet is aten.index or args[2].numel() > 1)


class _Methods(TorchFunctionMode):
    def __init__(self, work: DeviceWork) -> None:
        super().__init__()
        self.work = work

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = _copied(func, args, kwargs)
        if name is not None:
            self.work.waits[name] += 1
        return func(*args, **kwargs)


def _copied(func, args, kwargs) -> str | None:
    """The name of a copy between host and device that is waited for."""
    if func is Tensor.cpu or (func is Tensor.tolist and args[0].dim() > 0):
        return 'copy to the host'
    if func in (torch.tensor, torch.as_tensor):
        data = args[0] if args else kwargs['data']
        is_copied = kwargs.get('device') is not None and not isinstance(data, Tensor)
        return 'copy from the host' if is_copied else None
    if func is Tensor.new_tensor:
        return 'copy from the host'
    if func is Tensor.__getitem__ and isinstance(args[1], list):
        return 'copy from the host'
    if func is Tensor.__setitem__ and isinstance(args[2], (bool, int, float)):
        tensor, index, _ = args
        # Behind a slice or a mask a number is filled in.
        by_indices = isinstance(index, Tensor) and index.dtype != torch.bool
        if by_indices or (isinstance(index, int) and tensor.dim() == 1):
            return 'copy from the host'
    return None
