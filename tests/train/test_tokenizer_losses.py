"""The terms of the image tokenizer's loss against their formulas."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from showo.train.augment import seam
from showo.train.tokenizer_losses import (
    colour_loss,
    commitment_loss,
    entropy_loss,
    flat,
    locality_loss,
    loss_terms,
    psnr,
)


def test_entropy_loss_equals_the_sum_over_all_codes() -> None:
    torch.manual_seed(1)
    bits = 5
    z = torch.randn(3, bits, 2, 2)
    flat = z.double().movedim(1, -1).reshape(-1, bits)
    p = torch.softmax(torch.stack([-((flat + 1) ** 2), -((flat - 1) ** 2)]), 0)[1]  # of the bit being set
    joint = torch.stack(
        [torch.where(torch.tensor(code, dtype=torch.bool), p, 1 - p).prod(1) for code in product((0, 1), repeat=bits)],
        1,
    )
    each = -(joint * joint.log()).sum(1).mean()
    mean = joint.mean(0)
    expected = each + (mean * mean.log()).sum()
    torch.testing.assert_close(entropy_loss(z).double(), expected, rtol=1e-5, atol=1e-6)


def test_commitment_loss_against_the_official_formula() -> None:
    """Officially the quantized value that enters the loss is already straight-through: it passes its gradient to z."""
    z = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    q = z + (torch.where(z > 0, 1.0, -1.0) - z).detach()
    expected = (q.detach() - z).square().mean() + 0.25 * (q - z.detach()).square().mean()
    torch.testing.assert_close(commitment_loss(z), expected)
    gradients = [torch.autograd.grad(value, z)[0] for value in (commitment_loss(z), expected)]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(gradients[0], 0.75 * 2 * (z - q).detach() / z.numel())


def test_the_terms_are_what_they_are_called() -> None:
    a, b = torch.rand(2, 2, 3, 5, 4, dtype=torch.float64).unbind()
    z = torch.randn(2, 4, 2, 2, dtype=torch.float64)
    terms = loss_terms(a, z, b)
    error = a - b
    expected = {
        "mse": (error**2).mean(),
        "l1": error.abs().mean(),
        "gradient": (error[..., 1:] - error[..., :-1]).abs().mean() + (error[:, :, 1:] - error[:, :, :-1]).abs().mean(),
        "commitment": commitment_loss(z),
        "entropy": entropy_loss(z),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, msg=name)


def test_psnr_of_a_known_error() -> None:
    black = torch.full((1, 3, 4, 4), -1.0)
    torch.testing.assert_close(psnr(black + 0.2, black), torch.tensor([20.0]))
    assert torch.equal(psnr(black - 0.2, black), psnr(black, black))  # as it is drawn: nothing is blacker


def test_entropy_of_chosen_positions_is_that_of_their_latents_alone() -> None:
    z = torch.randn(3, 5, 4, 4)
    where = torch.rand(3, 4, 4) < 0.5
    chosen = z.movedim(1, -1)[where].T[None, :, :, None]
    torch.testing.assert_close(entropy_loss(z, where), entropy_loss(chosen))
    assert entropy_loss(z, torch.zeros_like(where)) == 0


def test_a_flat_patch_has_one_colour() -> None:
    images = torch.rand(2, 3, 1, 1).expand(2, 3, 8, 16).clone()
    assert flat(images, 2).all()
    images[1, 2, 5, 9] += 0.1
    expected = torch.ones(2, 1, 2, dtype=torch.bool)
    expected[1, 0, 1] = False
    assert torch.equal(flat(images, 2), expected)


def test_flat_patches_have_no_part_in_the_entropy_where_so_wished() -> None:
    images = torch.ones(2, 3, 8, 8)
    images[:, :, :4, :4] = torch.rand(2, 3, 4, 4)
    z = torch.randn(2, 4, 2, 2)
    terms = loss_terms(images, z, images, flat_patches=False)
    torch.testing.assert_close(terms["entropy"], entropy_loss(z[:, :, :1, :1]))
    torch.testing.assert_close(loss_terms(images, z, images)["entropy"], entropy_loss(z))


def test_latents_that_see_only_their_patch_are_local() -> None:
    """The mean of a patch is; the mean of the whole picture is not; and what lies beside the seam does not count."""
    for _ in range(10):
        images = torch.rand(8, 3, 32, 32)
        line = seam(images, 4, torch.Generator().manual_seed(int(torch.randint(2**31, ()))))
        joined = line.join(images)
        assert locality_loss(F.avg_pool2d(images, 4), F.avg_pool2d(joined, 4), line) < 1e-12
        near = F.avg_pool2d(images, 8, 4, padding=2, count_include_pad=False)  # sees 2 pixels of the next patches
        assert locality_loss(near, F.avg_pool2d(joined, 8, 4, padding=2, count_include_pad=False), line) < 1e-12
        whole = F.avg_pool2d(images, 4) + images.mean((2, 3), keepdim=True)
        assert locality_loss(whole, F.avg_pool2d(joined, 4) + joined.mean((2, 3), keepdim=True), line) > 1e-6


def test_locality_is_the_mean_over_what_is_compared() -> None:
    images = torch.rand(4, 3, 32, 32)
    line = seam(images, 4, torch.Generator().manual_seed(0))
    z, joined = torch.randn(4, 5, 8, 8), torch.randn(1, 5, 8, 8)
    a, b, c = (x.movedim(line.axis, 1) for x in (z[line.first], z[line.second], joined))
    errors = torch.cat([(c - a)[:, : line.cut - 1].flatten(), (c - b)[:, line.cut + 1 :].flatten()])
    torch.testing.assert_close(locality_loss(z, joined, line), errors.square().mean())


def test_the_first_bits_may_tell_the_colour() -> None:
    z, other = torch.randn(2, 2, 6, 3, 3).unbind()
    torch.testing.assert_close(colour_loss(z, other, 2), (z - other)[:, 2:].square().mean())
