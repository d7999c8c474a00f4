"""The digit networks: shapes, conditioning, that no image looks at its neighbours, and their size."""

import math

import pytest
import torch
from torch import nn

from difflesson.digits.networks import Attention, DigitClassifier, DigitUNet, NoiseEmbedding, ResidualBlock

F64 = torch.float64
INFINITE = (-math.inf, math.inf)


def awake(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in float64 with every weight random: a fresh U-Net answers 0 to everything."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        fan_in = p[0].numel() if p.dim() > 1 else 4
        p.data = torch.randn(p.shape, generator=generator, dtype=F64) / math.sqrt(fan_in)
    return network.double()


def inputs(batch: int, height: int, width: int, classes: int, seed: int = 1):
    """Images, noise levels from -12 to 12, and labels with the null label among them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 1, height, width, generator=generator, dtype=F64)
    log_snr = torch.linspace(-12, 12, batch, dtype=F64)
    return x, log_snr, (torch.arange(batch) + classes) % (classes + 1)


def small_unet() -> nn.Module:
    return awake(DigitUNet(widths=(8, 16), classes=3, embedding=16))


def small_classifier() -> nn.Module:
    return awake(DigitClassifier(widths=(8, 16), classes=3, embedding=16))


def worst(a, b) -> float:
    """Maximum absolute difference."""
    return float((a - b).detach().abs().max())


# ---- shapes


@pytest.mark.parametrize("height, width", [(28, 28), (8, 8), (4, 4), (8, 12)])
def test_the_unet_answers_in_the_shape_of_its_input(height, width):
    x, log_snr, label = inputs(5, height, width, 3)
    v = small_unet()(x, log_snr, label)
    assert v.shape == x.shape and v.dtype == F64 and bool(v.isfinite().all())


@pytest.mark.parametrize("size", [28, 8])
def test_the_classifier_answers_with_logits_and_features(size):
    x, log_snr, _ = inputs(5, size, size, 3)
    network = small_classifier()
    assert network(x, log_snr).shape == (5, 3)
    assert network.features(x, log_snr).shape == (5, 16)
    assert worst(network.leave(network.features(x, log_snr)), network(x, log_snr)) == 0


# ---- what the answer depends on


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("size", [28, 8])
def test_no_image_depends_on_the_others_in_its_batch(size, training):
    """Then the gradient of a summed log-probability is the gradient of each, even without eval()."""
    unet, classifier = small_unet().train(training), small_classifier().train(training)
    x, log_snr, label = inputs(6, size, size, 3)
    v, logits = unet(x, log_snr, label), classifier(x, log_snr)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert worst(unet(x[order], log_snr[order], label[order]), v[order]) < 1e-12
    assert worst(classifier(x[order], log_snr[order]), logits[order]) < 1e-12
    for i in range(6):
        one = slice(i, i + 1)
        assert worst(unet(x[one], log_snr[one], label[one]), v[one]) < 1e-12
        assert worst(classifier(x[one], log_snr[one]), logits[one]) < 1e-12


def test_no_image_has_a_gradient_in_another():
    x, log_snr, label = inputs(4, 8, 8, 3)
    x.requires_grad_()
    for answer in (small_unet()(x, log_snr, label), small_classifier()(x, log_snr)):
        reached = torch.autograd.grad(answer[2].square().sum(), x)[0].abs().amax(dim=(1, 2, 3))
        assert float(reached[2]) > 1e-3 and worst(reached[[0, 1, 3]], torch.zeros(3)) == 0


def test_every_label_the_null_label_too_gives_its_own_answer():
    network = small_unet()
    x, log_snr, _ = inputs(1, 8, 8, 3)
    answers = [network(x, log_snr, torch.tensor([label])) for label in range(4)]
    assert min(worst(a, b) for i, a in enumerate(answers) for b in answers[:i]) > 1e-3
    with pytest.raises(IndexError):
        network(x, log_snr, torch.tensor([4]))


def test_the_noise_level_changes_the_answer_of_both_networks():
    x, _, label = inputs(1, 8, 8, 3)
    unet, classifier = small_unet(), small_classifier()
    levels = [torch.tensor([value], dtype=F64) for value in (-math.inf, -4.0, 0.0, 4.0, math.inf)]
    for low, high in zip(levels, levels[1:], strict=False):
        assert worst(unet(x, low, label), unet(x, high, label)) > 1e-3
        assert worst(classifier(x, low), classifier(x, high)) > 1e-3


def test_without_a_noise_level_the_classifier_takes_the_images_for_clean():
    x, _, _ = inputs(3, 8, 8, 3)
    network, clean = small_classifier(), torch.full((3,), math.inf, dtype=F64)
    assert worst(network(x), network(x, clean)) == 0
    assert worst(network.features(x), network.features(x, clean)) == 0


# ---- the noise embedding


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_noise_embedding_is_finite_at_no_noise_and_at_nothing_but_noise(dtype):
    embedding = NoiseEmbedding(16).to(dtype)
    log_snr = torch.tensor([*INFINITE, -1e30, 1e30, -200.0, 200.0, 0.0], dtype=dtype, requires_grad=True)
    answer = embedding(log_snr)
    assert answer.shape == (7, 16) and bool(answer.isfinite().all())
    assert bool(torch.autograd.grad(answer.sum(), embedding.parameters())[0].isfinite().all())
    assert worst(answer[0], answer[2]) == 0 and worst(answer[1], answer[3]) == 0  # the limits, reached


def test_the_noise_embedding_is_fourier_features_of_the_angle():
    """Independent: from alpha and sigma by `atan2`, frequencies geometric from 1 to 256."""
    embedding = NoiseEmbedding(16).double()
    sigma = torch.tensor([0.001, 0.3, 0.8, 0.9999], dtype=F64)
    alpha = (1 - sigma**2).sqrt()
    angle = torch.atan2(sigma, alpha)[:, None] * 256.0 ** (torch.arange(32, dtype=F64) / 31)
    expected = embedding.mlp(torch.cat([torch.sin(angle), torch.cos(angle)], dim=1))
    # The frequencies are stored in float32.
    assert worst(embedding(2 * torch.log(alpha / sigma)), expected) < 1e-4


# ---- the parts


def test_attention_agrees_with_the_fused_kernel_of_pytorch():
    attention = awake(Attention(16, heads=4))
    x = inputs(3, 4, 6, 3)[0].expand(3, 16, 4, 6) * torch.linspace(-1, 1, 16, dtype=F64)[:, None, None]
    tokens = attention.norm(x).flatten(2).mT
    q, k, v = (part.unflatten(2, (4, 4)).transpose(1, 2) for part in attention.qkv(tokens).chunk(3, dim=2))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    assert worst(attention(x), x + attention.out(mixed).mT.reshape(x.shape)) < 1e-12


def test_a_fresh_unet_predicts_zero_and_its_branches_are_the_identity():
    network = DigitUNet(widths=(8, 16), embedding=16)
    x, log_snr, label = inputs(3, 8, 8, 3)
    assert worst(network(x.float(), log_snr.float(), label), torch.zeros(())) == 0
    h = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    block = network.down_coarse
    assert isinstance(block, ResidualBlock) and worst(block(h, torch.ones(2, 16)), h) == 0
    assert worst(network.attention(h), h) == 0


def test_every_weight_of_both_networks_is_used():
    """A weight without a gradient would be dead, and several processes would wait for it forever."""
    x, log_snr, label = inputs(5, 8, 8, 3)
    for network, arguments in ((small_unet(), (x, log_snr, label)), (small_classifier(), (x, log_snr))):
        network(*arguments).square().sum().backward()
        assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in network.parameters())


def test_the_networks_are_as_small_as_the_text_says():
    """A million or two, and less than one: in half precision the shipped networks stay under 8 MB."""
    unet, classifier = (sum(p.numel() for p in n().parameters()) for n in (DigitUNet, DigitClassifier))
    assert 1e6 < unet < 2e6 and 1e5 < classifier < 1e6
    assert 2 * (unet + 2 * classifier) < 8e6


# ---- inputs of other kinds


def test_no_image_at_all_gets_no_answer():
    """A batch of which no label is hidden asks its teacher about none."""
    x, log_snr, label = inputs(4, 8, 8, 3)
    answer = small_unet()(x[:0], log_snr[:0], label[:0])
    assert answer.shape == (0, 1, 8, 8) and answer.dtype == x.dtype


def test_networks_of_single_precision_take_images_of_another():
    """In the precision of their weights: the answer is that to the rounded image, and near that of float64."""
    x, log_snr, label = inputs(3, 8, 8, 3)
    exact = small_unet()(x, log_snr, label), small_classifier()(x, log_snr)
    unet, classifier = small_unet().float(), small_classifier().float()
    for found, rounded, wanted in zip(
        (unet(x, log_snr, label), classifier(x, log_snr)),
        (unet(x.float(), log_snr.float(), label), classifier(x.float(), log_snr.float())),
        exact,
        strict=True,
    ):
        assert found.dtype == torch.float32 and torch.equal(found, rounded)
        assert worst(found, wanted) < 1e-4 * float(wanted.detach().abs().max())
    assert torch.equal(classifier(x), classifier(x.float()))
