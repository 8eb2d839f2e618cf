"""The theorems of the Walsh–Hadamard transform, and its agreement with the dense matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from spex_mech.errors import DecodeError
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum
from spex_mech.walsh.transform import walsh_hadamard, walsh_matrix

BITS = st.integers(0, 11)
SEEDS = st.integers(0, 2**31)
fast = settings(max_examples=30, deadline=None)


def random_values(bits, seed, rows=(3,), dtype=torch.float64):
    return torch.randn(*rows, 1 << bits, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@fast
@given(BITS, SEEDS)
def test_agrees_with_the_dense_matrix(bits, seed):
    values = random_values(bits, seed)
    torch.testing.assert_close(walsh_hadamard(values), values @ walsh_matrix(bits).T)


def test_dense_matrix_by_its_definition():
    signs = torch.tensor([[(-1.0) ** (s & m).bit_count() for m in range(64)] for s in range(64)], dtype=torch.float64)
    assert torch.equal(walsh_matrix(6), signs)
    kronecker = torch.ones(1, 1, dtype=torch.float64)
    for _ in range(8):
        kronecker = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), kronecker)
    assert torch.equal(walsh_matrix(8), kronecker)


@fast
@given(BITS, SEEDS)
def test_twice_is_the_number_of_points(bits, seed):
    values = random_values(bits, seed)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(values)), values * 2**bits)
    torch.testing.assert_close(walsh_hadamard(walsh_hadamard(values)) / values.shape[-1], values)


@fast
@given(BITS, SEEDS)
def test_parseval(bits, seed):
    values = random_values(bits, seed)
    torch.testing.assert_close((walsh_hadamard(values) ** 2).sum(-1), 2**bits * (values**2).sum(-1))


@fast
@given(BITS, SEEDS, st.floats(-3, 3), st.floats(-3, 3))
def test_linear(bits, seed, a, b):
    first, second = random_values(bits, seed), random_values(bits, seed + 1)
    combined = a * walsh_hadamard(first) + b * walsh_hadamard(second)
    torch.testing.assert_close(walsh_hadamard(a * first + b * second), combined, rtol=1e-9, atol=1e-9)


@fast
@given(BITS, SEEDS, st.integers(0, 2**11 - 1))
def test_a_shift_is_a_sign(bits, seed, delay):
    delay %= 1 << bits
    values, points = random_values(bits, seed), torch.arange(1 << bits)
    signs = walsh_matrix(bits)[delay]
    torch.testing.assert_close(walsh_hadamard(values[:, points ^ delay]), signs * walsh_hadamard(values))


@fast
@given(BITS, SEEDS)
def test_float32_is_as_good_as_its_rounding(bits, seed):
    values = random_values(bits, seed, dtype=torch.float32)
    out = walsh_hadamard(values)
    assert out.dtype == torch.float32
    error = (out - walsh_hadamard(values.double())).abs().amax(-1)
    assert (error <= 2.0**-23 * (bits + 1) * values.abs().sum(-1)).all()


@fast
@given(BITS, SEEDS)
def test_rows_are_independent_and_the_input_is_left_alone(bits, seed):
    values = random_values(bits, seed, rows=(2, 3))
    before = values.clone()
    out = walsh_hadamard(values)
    assert torch.equal(values, before)
    assert out.shape == values.shape
    torch.testing.assert_close(out[1, 2], walsh_hadamard(values[1, 2]))
    strided = values.transpose(0, 1)
    torch.testing.assert_close(walsh_hadamard(strided), out.transpose(0, 1))


def test_reads_the_coefficients_of_a_polynomial_by_the_bits_of_the_set():
    planted = {(): 1.0, (0,): -2.0, (1, 3): 0.5, (0, 2, 4): 3.0}
    values = Spectrum.from_terms(5, planted).evaluate(MaskDesign.complete(5).keep())
    coefficients = walsh_hadamard(values) / 2**5
    expected = torch.zeros(32, dtype=torch.float64)
    for members, coefficient in planted.items():
        expected[sum(1 << i for i in members)] = coefficient
    torch.testing.assert_close(coefficients, expected)


def test_reduced_matmul_precision_does_not_round_the_transform():
    values = random_values(10, 5, dtype=torch.float32)
    expected = walsh_hadamard(values.double())
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        out = walsh_hadamard(values)
    finally:
        torch.set_float32_matmul_precision(before)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", [(3,), (2, 12), (0,), ()])
def test_other_lengths_are_refused(shape):
    with pytest.raises(DecodeError, match="2\\^b points"):
        walsh_hadamard(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16, torch.complex64])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(DecodeError, match="float32 or float64"):
        walsh_hadamard(torch.zeros(4, dtype=dtype))


def test_no_rows_give_no_rows():
    assert walsh_hadamard(torch.zeros(0, 8)).shape == (0, 8)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cuda_agrees_with_cpu(dtype):
    values = random_values(13, 7, dtype=dtype)
    exact = walsh_hadamard(values.double())
    cpu_error = (walsh_hadamard(values).double() - exact).abs().max()
    cuda_error = (walsh_hadamard(values.cuda()).cpu().double() - exact).abs().max()
    assert cuda_error <= 2 * cpu_error + 1e-9
