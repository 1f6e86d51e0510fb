"""The loss of the image tokenizer's training, term by term.

Loss = squared error + l1_weight x L1 + gradient_weight x L1 of pixel differences + quantizer_weight x commitment +
entropy_weight x entropy term + locality_weight x locality + colour_weight x colour. Commitment and entropy are those of
the official modeling_magvitv2.py (LFQuantizer), after MAGVIT-v2 (arXiv 2310.05737, eq. 5). The last two are ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from showo.train.augment import Seam
from showo.train.config import TokenizerTraining


def commitment_loss(z: Tensor) -> Tensor:
    """mean((sg(q) - z)^2) + 0.25 mean((q - sg(z))^2) with sg for stop-gradient and q the signs of z.

    Officially q passes its gradient straight on to z, so the second term pulls z away from q and takes a quarter of
    the first term's gradient back: the value is 1.25 times the squared distance, the gradient 0.75 times that of it.
    """
    distance = (torch.where(z > 0, 1.0, -1.0) - z).square().mean()
    return 0.75 * distance + 0.5 * distance.detach()


def entropy_loss(z: Tensor, where: Tensor | None = None) -> Tensor:
    """Mean entropy of the code of a position minus the entropy of the mean distribution over all codes, in nats.

    A bit has logits -(z-1)^2 and -(z+1)^2, which differ by 4z: p = sigmoid(4z). z is [B, bits, H, W]. The entropy of
    the mean is the joint one over 2**bits codes, as in MAGVIT-v2 (eq. 5); the official code takes it bit by bit,
    which leaves equal bits unpunished: trained so, half of the bits here became copies of each other. The bits of a
    position are independent, so the mean joint distribution is one matrix product of the two halves' distributions.

    where: bool [B, H, W], the positions that count; None takes all. Where pictures are mostly empty ground, the reward
    for using many codes makes the same ground take many: then only what is not flat should count.
    """
    z = z.float().movedim(1, -1)
    z = z.flatten(0, -2) if where is None else z[where]  # [positions, bits]
    if len(z) == 0:
        return z.sum()
    positions, bits = z.shape
    p = torch.sigmoid(4 * z)
    each = -(p * F.logsigmoid(4 * z) + (1 - p) * F.logsigmoid(-4 * z)).sum(1).mean()
    halves = []
    for half in p.split([bits // 2, bits - bits // 2], dim=1):
        codes = half.new_ones(positions, 1)
        for bit in half.unbind(1):
            codes = torch.cat([codes * (1 - bit[:, None]), codes * bit[:, None]], dim=1)
        halves.append(codes)
    mean = halves[0].mT @ halves[1] / positions  # [2**(bits // 2), 2**(bits - bits // 2)]
    return each + torch.xlogy(mean, mean.clamp_min(1e-12)).sum()


def gradient_loss(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the horizontal and vertical first differences of two batches of pictures."""
    return F.l1_loss(a.diff(dim=-1), b.diff(dim=-1)) + F.l1_loss(a.diff(dim=-2), b.diff(dim=-2))


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Per picture, in dB, for pictures in [-1, 1] taken to 8-bit range: 10 log10(4 / mse). [B, 3, H, W] x2 -> [B]."""
    mse = (a.clamp(-1, 1) - b).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse.clamp_min(1e-10))


def flat(images: Tensor, side: int) -> Tensor:
    """Which of the side x side patches of pictures [B, 3, H, W] have a single colour: bool [B, side, side]."""
    size = images.shape[-1] // side
    patches = images.unflatten(3, (side, size)).unflatten(2, (-1, size))  # [B, 3, rows, size, columns, size]
    spread = patches.amax((3, 5)) - patches.amin((3, 5))
    return (spread < 2 / 255).all(1)


def locality_loss(z: Tensor, joined: Tensor, line: Seam) -> Tensor:
    """Mean squared difference between the latents of joined pictures and those of the pictures that they consist of.

    A patch should have the same code whatever stands far from it, so that what is learned about an object holds
    beside any other object. The patches next to the seam are left out: what is near to them is another thing there.

    z [B, bits, h, w]: of the pictures. joined: of what `line` made of them.
    """
    axis = line.axis
    before = joined.narrow(axis, 0, line.cut - 1) - z[line.first].narrow(axis, 0, line.cut - 1)
    after_count = z.shape[axis] - line.cut - 1
    after = joined.narrow(axis, line.cut + 1, after_count) - z[line.second].narrow(axis, line.cut + 1, after_count)
    return torch.cat([before.flatten(), after.flatten()]).float().square().mean()


def colour_loss(z: Tensor, recoloured: Tensor, colour_bits: int) -> Tensor:
    """Mean squared difference of all but the first `colour_bits` channels of the latents of two versions of pictures
    [B, bits, h, w] that differ in nothing but their colours.

    So the first bits of a code say the colour, the others the form, and a red edge and a blue one differ in few bits.
    """
    return (z[:, colour_bits:] - recoloured[:, colour_bits:]).float().square().mean()


def loss_terms(reconstruction: Tensor, z: Tensor, images: Tensor, *, flat_patches: bool = True) -> dict[str, Tensor]:
    """The unweighted terms for pictures [B, 3, H, W] and what the model made of them: see `ImageTokenizer.forward`.

    flat_patches: whether the entropy term covers patches of a single colour too.
    """
    shaped = None if flat_patches else ~flat(images, z.shape[-1])
    return {
        "mse": F.mse_loss(reconstruction, images),
        "l1": F.l1_loss(reconstruction, images),
        "gradient": gradient_loss(reconstruction, images),
        "commitment": commitment_loss(z),
        "entropy": entropy_loss(z, shaped),
    }


def loss_weights(config: TokenizerTraining) -> dict[str, float]:
    return {
        "mse": 1.0,
        "l1": config.l1_weight,
        "gradient": config.gradient_weight,
        "commitment": config.quantizer_weight,
        "entropy": config.entropy_weight,
        "locality": config.locality_weight,
        "colour": config.colour_weight,
    }
