"""torch.set_default_dtype is the caller's business: operators give the same bits whatever it says."""

import contextlib

import pytest
import torch

import showo_ext
from showo_ext import reference
from tests.examples import examples

EXAMPLES = examples()


@contextlib.contextmanager
def default_dtype(dtype):
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


@pytest.fixture(params=["cpu", "emulated", "reference"])
def package(request):
    if request.param == "emulated":
        request.getfixturevalue("emulated")
    return reference if request.param == "reference" else showo_ext


@pytest.mark.parametrize("function", EXAMPLES)
def test_results_do_not_depend_on_it(package, function):
    expected = EXAMPLES[function](package, torch.float32)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        with default_dtype(dtype):
            actual = EXAMPLES[function](package, torch.float32)
        torch.testing.assert_close(list(actual), list(expected), rtol=0, atol=0)
