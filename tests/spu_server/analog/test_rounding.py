"""Codes, dithers, converters and arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spu_link.operators import Dense, EmbeddingRows, LayerRows, LinearRows, Rows
from spu_server.analog.converters import AnalogToDigital, DigitalToAnalog
from spu_server.analog.programming import Programming
from spu_server.analog.rounding import Dither, codes, round_to_codes

PLAIN = Dither(1, 0)


def values(n: int = 1000, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.rand(n, generator=generator, dtype=torch.float64) - 1.0


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_codes_are_evenly_spaced_symmetric_and_the_nearest(bits: int) -> None:
    x = values()
    y = round_to_codes(x, 1.0, bits)
    step = 1.0 / codes(bits)
    assert (y - x).abs().max() <= step / 2 * (1 + 1e-12)
    assert torch.equal(y / step, (y / step).round())
    assert torch.equal(round_to_codes(-x, 1.0, bits), -y)


@given(bits=st.integers(2, 16), number=st.floats(-1.0, 1.0))
def test_rounding_twice_is_rounding_once(bits: int, number: float) -> None:
    once = round_to_codes(torch.tensor([number], dtype=torch.float64), 1.0, bits, 0.3)
    assert torch.equal(round_to_codes(once, 1.0, bits, 0.7), once)


@pytest.mark.parametrize("roundings", [2, 7, 16])
def test_the_mean_of_dithered_roundings_is_as_fine_as_so_many_more_codes(roundings: int) -> None:
    x, bits = values(), 4
    dither = Dither(roundings, 5)
    rounds = [round_to_codes(x, 1.0, bits, dither.threshold(x.shape, r, 0)) for r in range(roundings)]
    error = (sum(rounds) / roundings - x).abs().max()
    assert error <= 0.5 / codes(bits) / roundings * (1 + 1e-9)
    assert any(not torch.equal(a, rounds[0]) for a in rounds[1:])


def test_each_element_meets_each_threshold_once() -> None:
    dither = Dither(12, 1)
    thresholds = torch.stack([torch.as_tensor(dither.threshold(torch.Size([50]), r, 3)) for r in range(12)])
    expected = ((torch.arange(12) + 0.5) / 12).double()[:, None].expand(12, 50)
    torch.testing.assert_close(thresholds.sort(0).values, expected)


def test_one_bit_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        round_to_codes(values(), 1.0, 1)


def test_a_ranging_converter_keeps_the_bits_of_small_drives_and_clips_nothing() -> None:
    x = 1e-9 * values()
    y, clipped = DigitalToAnalog(bits=8, range=1.0).convert(x)
    assert clipped == 0
    assert (y - x).abs().max() <= 0.5 / codes(8) * x.abs().max() * (1 + 1e-9)


def test_without_ranging_small_drives_vanish_and_large_ones_are_clipped_and_counted() -> None:
    converter = DigitalToAnalog(bits=8, range=1.0, ranging=False)
    assert not converter.convert(1e-3 * values())[0].any()
    y, clipped = converter.convert(torch.tensor([0.5, 2.0, -3.0], dtype=torch.float64))
    assert clipped == 2
    np.testing.assert_allclose(y, [0.5, 1.0, -1.0], atol=0.5 / 127)


def test_bits_without_a_range_are_refused() -> None:
    for converter in (DigitalToAnalog, AnalogToDigital):
        with pytest.raises(ValueError, match="8 bits, but neither"):
            converter(bits=8, ranging=False)


def test_the_gain_amplifier_halves_the_range_as_often_as_the_signal_allows() -> None:
    generator = torch.Generator()
    x = 0.24 * values()
    y, _ = AnalogToDigital(bits=8, range=1.0).convert(x, generator)
    assert (y - x).abs().max() <= 0.5 * 0.25 / codes(8) * (1 + 1e-9)
    y, _ = AnalogToDigital(bits=8, range=1.0, gains=1).convert(x, generator)
    assert (y - x).abs().max() > 0.5 * 0.25 / codes(8)
    y, clipped = AnalogToDigital(bits=8, range=0.1).convert(x, generator)
    assert clipped == int((x.abs() > 0.1).sum())
    assert y.abs().max() <= 0.1


def test_noise_of_the_converter_has_its_rms() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(20000, dtype=torch.float64)
    y, _ = AnalogToDigital(noise=0.01).convert(x, generator)
    # χ² with 20,000 degrees of freedom: 5 standard deviations are 2.5 % of the rms.
    assert abs(float(y.std()) / 0.01 - 1.0) < 0.025


def operator() -> LayerRows:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    indices = torch.tensor([[0, 2], [1, 1], [2, 0]])
    return LayerRows(
        [
            LinearRows(normal(3, 4), normal(2, 3, 3), bias=True),
            EmbeddingRows(indices, normal(2, 3, 2, 2), embeddings=4),
            Rows(normal(6, 5)),
        ]
    )


def test_exact_programming_hands_the_operator_through() -> None:
    given = operator()
    assert Programming(separate=True).arrays(given, 0, PLAIN, 0) == (given, given)


def test_codes_of_factors_have_a_scale_for_each_leading_index() -> None:
    a = values(12).reshape(3, 4) * torch.tensor([[1.0], [1e-3], [1e-6]], dtype=torch.float64)
    forward, backward = Programming(bits=8).arrays(Rows(a), 0, PLAIN, 0)
    assert backward is forward
    error = (forward.dense() - a).abs().amax(1) / a.abs().amax(1)
    assert (error <= 0.5 / 127 * (1 + 1e-9)).all()
    assert (error > 0).all()


def test_separate_arrays_share_codes_and_differ_by_mismatch_that_stays() -> None:
    programming = Programming(bits=6, mismatch=0.01, separate=True)
    forward, backward = programming.arrays(operator(), 7, PLAIN, 0)
    again, _ = programming.arrays(operator(), 7, PLAIN, 0)
    other, _ = programming.arrays(operator(), 8, PLAIN, 0)
    assert torch.equal(forward.dense(), again.dense())
    assert not torch.equal(forward.dense(), other.dense())
    rows = [layers.layers[2].dense() for layers in (forward, backward)]  # type: ignore[attr-defined]
    plain = Programming(bits=6).arrays(operator(), 7, PLAIN, 0)[0].layers[2].dense()  # type: ignore[attr-defined]
    ratio = torch.stack([r / plain - 1.0 for r in rows])[:, plain != 0]
    assert 0.003 < float(ratio.std()) < 0.03
    assert not torch.equal(rows[0], rows[1])


def test_rows_may_be_held_in_full() -> None:
    given = operator()
    forward, _ = Programming(bits=8, holds="rows").arrays(given, 0, PLAIN, 0)
    assert isinstance(forward, Rows)
    largest = given.dense().abs().amax(1, keepdim=True)
    assert ((forward.dense() - given.dense()).abs() <= largest * 0.5 / 127 * (1 + 1e-9)).all()


@pytest.mark.parametrize("roundings", [1, 4])
def test_a_matrix_stays_symmetric_unless_its_halves_are_separate(roundings: int) -> None:
    f = Dense(values(16).reshape(4, 4) @ values(16).reshape(4, 4).T)
    dither = Dither(roundings, 3)
    shared, same = Programming(bits=5, mismatch=0.05).arrays(f, 1, dither, roundings - 1)
    assert same is shared
    assert torch.equal(shared.dense(), shared.dense().T)
    apart, _ = Programming(bits=5, mismatch=0.05, separate=True).arrays(f, 1, dither, 0)
    assert not torch.equal(apart.dense(), apart.dense().T)


def test_ideal_converters_change_nothing() -> None:
    x = values()
    assert torch.equal(DigitalToAnalog().convert(x)[0], x)
    assert torch.equal(AnalogToDigital().convert(x, torch.Generator())[0], x)
    assert math.isinf(AnalogToDigital().range)
