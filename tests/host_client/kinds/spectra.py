"""Networks with real parameters whose hidden values are complex for a while."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.networks import Function, parameter


def _gain(m: Function, x: Tensor) -> Tensor:
    """A real gain on the spectrum."""
    return torch.fft.irfft(torch.fft.rfft(x) * m.gain, n=6)


def _gain_on_the_left(m: Function, x: Tensor) -> Tensor:
    return torch.fft.irfft(m.gain * torch.fft.rfft(x), n=6)


def _gain_and_offset(m: Function, x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft(x) * m.gain + m.offset
    return torch.fft.irfft(spectrum.mul(1j), n=6)


def _as_complex(m: Function, x: Tensor) -> Tensor:
    """A complex multiplication by real parameters of shape (…, 2), as in Fourier neural operators."""
    return torch.fft.irfft(torch.fft.rfft(x) * torch.view_as_complex(m.pairs), n=6)


def _mixing(m: Function, x: Tensor) -> Tensor:
    """A complex matrix over the channels of each frequency."""
    spectrum = torch.fft.rfft(x.view(-1, 2, 3))
    mixed = torch.einsum("bif,iof->bof", spectrum, torch.view_as_complex(m.matrix))
    return torch.fft.irfft(mixed, n=3).flatten(1)


def _filter(m: Function, x: Tensor) -> Tensor:
    """A convolution by the product of two spectra."""
    return torch.fft.irfft(torch.fft.rfft(x) * torch.fft.rfft(m.taps, n=6), n=6)


def _phase(m: Function, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.polar(m.gain.abs(), m.angle), n=6)


def _two_parts(m: Function, x: Tensor) -> Tensor:
    return torch.fft.irfft(torch.fft.rfft(x) * torch.complex(m.gain, m.angle), n=6)


def _magnitude(m: Function, x: Tensor) -> Tensor:
    return F.pad((torch.fft.rfft(x) * m.gain + 1j * m.angle).abs(), (0, 2))


def _linear_of_complex(m: Function, x: Tensor) -> Tensor:
    """A real matrix on a complex signal."""
    spectrum = torch.fft.fft(x)
    mixed = spectrum @ m.square.to(spectrum.dtype)
    return torch.fft.ifft(mixed).real


MODELS: dict[str, tuple[Callable[[Function, Tensor], Tensor], dict[str, tuple[int, ...]]]] = {
    "gain on a spectrum": (_gain, {"gain": (4,)}),
    "gain on the left": (_gain_on_the_left, {"gain": (4,)}),
    "gain and offset": (_gain_and_offset, {"gain": (4,), "offset": (4,)}),
    "magnitude": (_magnitude, {"gain": (4,), "angle": (4,)}),
    "view_as_complex": (_as_complex, {"pairs": (4, 2)}),
    "complex matrix for each frequency": (_mixing, {"matrix": (2, 2, 2, 2)}),
    "product of two spectra": (_filter, {"taps": (3,)}),
    "polar": (_phase, {"gain": (4,), "angle": (4,)}),
    "complex of two parts": (_two_parts, {"gain": (4,), "angle": (4,)}),
    "real matrix on a complex signal": (_linear_of_complex, {"square": (6, 6)}),
}


def spectral(name: str) -> Function:
    compute, shapes = MODELS[name]
    parts = {key: parameter(*shape) for key, shape in shapes.items()}
    forward = lambda m, x: m.head(compute(m, m.body(x).tanh()).tanh())  # noqa: E731
    return Function(forward, body=nn.Linear(4, 6), head=nn.Linear(6, 3), **parts).double()
