"""What a case of the benchmark is, and what it may cost."""

import importlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmwsss.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[3]
TESTS = CHECKOUT / 'tests'
FORMS = ('fast', 'naive')


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The least that any implementation has to do.

    Attributes:
        bytes: moved between memory and processor, each input and output once and
            nothing kept in a cache between the passes that the docstring counts.
        operations: floating point, a multiply-add is two.
    """

    bytes: float = 0.0
    operations: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A promise of the design page; None promises nothing.

    Attributes:
        device: where it holds.
        threads: with how many it holds; None with any number.
        times_faster: at least, than the naive form.
        extra_mb: at most, on top of the inputs.
        peak_mb: at most, in all.
        seconds: at most, for one call.
    """

    device: str = 'cpu'
    threads: int | None = None
    times_faster: float | None = None
    extra_mb: float | None = None
    peak_mb: float | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Where a case runs.

    Attributes:
        device: 'cpu' or 'cuda'.
        cores: threads of PyTorch; processes of the cases that start some.
        seed: of all that is drawn.
        folder: scratch, empty at first, removed afterwards.
    """

    device: str
    cores: int
    seed: int
    folder: Path

    def generator(self) -> torch.Generator:
        """Random numbers that are the same on every device."""
        return torch.Generator().manual_seed(self.seed)

    def rand(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(*shape, generator=self.generator()).to(self.device)

    def image_label(self, n: int, k: int, present: int) -> Tensor:
        """(n, k) 0/1 float32 with ``present`` classes at random in each row."""
        order = torch.rand(n, k, generator=self.generator()).argsort(1)
        return (order < present).float().to(self.device)


@dataclass(frozen=True, kw_only=True)
class Case(ABC):
    """One named measurement.

    Attributes:
        name: by which the command line asks for it.
        what: one sentence.
        slow: only measured where it is named or --slow is given.
        naive_is_slow: the same for its naive form.
        budget: what the design page promises.
        group: another name for it and its like.
        has_naive: whether there is something to compare with.
        devices: where it makes sense.
        processes: its cores are processes of its own, not threads.
        half_precision: on a GPU it runs under bfloat16 autocast.
        keeps_memory: its process keeps freed memory, as that of train.py does.
        tolerance: largest difference that is rounding, as a share of the largest
            value of each tensor that the naive form returns.
        half_tolerance: the same under autocast.
        iterations: of the whole training whose step this is, None for others.
    """

    name: str
    what: str
    slow: bool = False
    naive_is_slow: bool = False
    budget: Budget | None = None
    group: ClassVar[str]
    has_naive: ClassVar[bool] = True
    devices: ClassVar[tuple[str, ...]] = ('cpu', 'cuda')
    processes: ClassVar[bool] = False
    half_precision: ClassVar[bool] = False
    keeps_memory: ClassVar[bool] = False
    tolerance: ClassVar[float] = 1e-5
    half_tolerance: ClassVar[float] = 0.1
    iterations: int | None = None

    @abstractmethod
    def make(self, setting: Setting) -> tuple:
        """The inputs of one call, on the device; not timed."""

    @abstractmethod
    def fast(self, inputs: tuple) -> object:
        """The form that the package uses; a tensor, tensors, or None."""

    def naive(self, inputs: tuple) -> object:
        """The same, written without any care for speed."""
        raise ValueError(f'{self.name} is compared with nothing, see has_naive')

    def cost(self, inputs: tuple) -> Cost | None:
        """What the docstring of the class counts, None where nothing is counted."""
        return None

    def tiny(self) -> 'Case':
        """The same at a size that ends at once."""
        return self

    def images(self) -> int | None:
        """Images of one call, None where that says nothing."""
        return None

    def steady_seconds(self, inputs: tuple) -> float | None:
        """Seconds of the last call without its start; None where it has no start."""
        return None


def naive_forms() -> ModuleType:
    """tests/naive_forms.py, which is no part of the package.

    Raises:
        InputError: outside a checkout.
    """
    if not (TESTS / 'naive_forms.py').is_file():
        raise InputError(
            f'{TESTS} with the naive forms is not here; run the benchmark in a '
            'checkout of the repository'
        )
    if str(TESTS) not in sys.path:
        sys.path.append(str(TESTS))
    return importlib.import_module('naive_forms')


def counted_operations(function: Callable[[], object]) -> float:
    """Operations of the matrix products, convolutions and attentions of one call."""
    counter = FlopCounterMode(display=False)
    with counter:
        function()
    return float(counter.get_total_flops())


def num_bytes(tensors: object) -> float:
    """Bytes of a tensor or of all in a sequence."""
    if isinstance(tensors, Tensor):
        return tensors.numel() * tensors.element_size()
    return sum(map(num_bytes, tensors))
