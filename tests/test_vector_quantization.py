"""The vector quantizer: nearest code, moving averages, padding code, restarts."""

import pytest
import torch

from clearspeech.modeling.vector_quantization import LAPLACE_EPSILON, EMAVectorQuantizer


def quantizer(num_codes=8, dim=4, distance="l2", dead_code_threshold=0.0, decay=0.9):
    torch.manual_seed(0)
    vq = EMAVectorQuantizer(num_codes, dim, decay, distance, dead_code_threshold)
    vq.reset_codebook()
    vq.codebook *= 30  # Kaiming noise lies too close to the origin to tell codes apart
    vq.sums *= 30
    return vq


def random_frames(batch=3, frames=7, dim=4):
    torch.manual_seed(1)
    return torch.randn(batch, frames, dim), torch.arange(frames) < torch.tensor([7, 4, 1])[:, None]


def test_codes_are_nearest_in_l2():
    vq = quantizer()
    latents, mask = random_frames()
    output = vq.eval()(latents, mask)
    distances = torch.cdist(latents[mask], vq.codebook[:8])
    assert torch.equal(output.codes[mask], distances.argmin(dim=-1))
    assert torch.allclose(output.distances[mask], distances.min(dim=-1).values, atol=1e-5)
    assert torch.allclose(output.chosen[mask], vq.codebook[output.codes[mask]])


def test_codes_are_nearest_in_cosine():
    vq = quantizer(distance="cosine")
    latents, mask = random_frames()
    similarities = torch.nn.functional.cosine_similarity(latents[mask].unsqueeze(1), vq.codebook[:8], dim=-1)
    assert torch.equal(vq.eval()(latents, mask).codes[mask], similarities.argmax(dim=-1))


def test_codes_start_as_kaiming_noise_whose_fan_in_is_their_width():
    vq = EMAVectorQuantizer(500, 24, 0.9, "l2", 0.0)
    vq.reset_codebook()
    bound = (6 / 24) ** 0.5
    assert 0.99 * bound < vq.codebook.abs().max() <= bound
    assert vq.codebook.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)  # uniform
    assert torch.equal(vq.sums, vq.codebook[:-1]) and torch.equal(vq.sizes, torch.ones(500))


def test_padding_gets_the_padding_code_and_no_frame_chooses_it():
    vq = quantizer()
    latents, mask = random_frames()
    vq.codebook[8] = latents[0, 0]  # nearer than any other
    codes = vq.eval()(latents, mask).codes
    assert torch.equal(codes == 8, ~mask)


def test_gradient_goes_straight_through_to_the_latents():
    vq = quantizer()
    latents, mask = random_frames()
    latents.requires_grad_()
    weights = torch.randn_like(latents)
    (vq.eval()(latents, mask).quantized * weights).sum().backward()
    assert torch.equal(latents.grad, weights)


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_averages_move_as_the_slow_reference_says(distance):
    vq = quantizer(distance=distance)
    latents, mask = random_frames()
    sums, sizes = vq.sums.clone(), vq.sizes.clone()
    codes = vq.train()(latents, mask).codes
    frames = torch.nn.functional.normalize(latents, dim=-1) if distance == "cosine" else latents
    for code in range(8):
        chosen = frames[mask & (codes == code)]
        sums[code] = 0.9 * sums[code] + 0.1 * chosen.sum(dim=0)
        sizes[code] = 0.9 * sizes[code] + 0.1 * len(chosen)
    smoothed = (sizes + LAPLACE_EPSILON) / (sizes.sum() + 8 * LAPLACE_EPSILON) * sizes.sum()
    expected = sums / smoothed[:, None]
    expected = torch.nn.functional.normalize(expected, dim=-1) if distance == "cosine" else expected
    assert torch.allclose(vq.sums, sums, atol=1e-6)
    assert torch.allclose(vq.sizes, sizes, atol=1e-6)
    assert torch.allclose(vq.codebook[:8], expected, atol=1e-5)


def test_padding_does_not_move_the_averages():
    latents, mask = random_frames()
    first, second = quantizer().train(), quantizer().train()
    first(latents, mask)
    second(torch.where(mask.unsqueeze(-1), latents, 1e3), mask)
    assert torch.equal(first.codebook, second.codebook)


def test_averages_rest_in_evaluation():
    vq = quantizer().eval()
    before = vq.codebook.clone()
    vq(*random_frames())
    assert torch.equal(vq.codebook, before)


def test_codes_that_nothing_chooses_stay_finite():
    vq = quantizer().train()
    latents, mask = random_frames()
    for _ in range(300):
        vq(latents[:, :1], mask[:, :1])
    assert torch.isfinite(vq.codebook).all()
    assert vq.codebook.abs().max() < 100


def test_the_codebook_converges_to_the_data():
    vq = quantizer(num_codes=2).train()
    centres = torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]])
    frames = centres.repeat(1, 20).view(1, -1, 4)
    vq.codebook[:2] = torch.tensor([[0.1, 0, 0, 0], [-0.1, 0, 0, 0]])
    vq.sums.copy_(vq.codebook[:2])
    for _ in range(100):
        vq(frames, torch.ones(1, frames.shape[1], dtype=torch.bool))
    assert torch.allclose(vq.codebook[:2].sort(dim=0).values, centres.sort(dim=0).values, atol=1e-2)


def test_dead_codes_restart_from_frames_when_asked():
    latents = torch.randn(1, 200, 4) + 5
    mask = torch.ones(1, 200, dtype=torch.bool)
    used = {}
    for threshold in (0.0, 0.5):
        vq = quantizer(dead_code_threshold=threshold).train()
        for _ in range(30):
            vq(latents, mask)
        used[threshold] = len(vq.eval()(latents, mask).codes.unique())
    assert used[0.5] == 8 > used[0.0]


def test_fitting_puts_codes_into_the_data():
    vq = quantizer(num_codes=16)
    frames = torch.randn(500, 4) + 3
    before = torch.cdist(frames, vq.codebook[:16]).min(dim=-1).values.mean()
    padding = vq.codebook[16].clone()
    vq.fit(frames, torch.Generator().manual_seed(0))
    assert torch.cdist(frames, vq.codebook[:16]).min(dim=-1).values.mean() < 0.5 * before
    assert torch.equal(vq.codebook[16], padding)
    assert torch.allclose(vq.sums / vq.sizes[:, None], vq.codebook[:16], atol=1e-5)


def test_fitting_needs_as_many_frames_as_codes():
    with pytest.raises(ValueError, match="got 3"):
        quantizer().fit(torch.randn(3, 4), torch.Generator())


def test_ids_outside_the_codebook_are_refused():
    vq = quantizer()
    assert vq.embed(torch.tensor([0, 8])).shape == (2, 4)
    with pytest.raises(ValueError, match="got values from 0 to 9"):
        vq.embed(torch.tensor([0, 9]))


def test_averages_stay_float32_when_the_model_is_cast():
    vq = quantizer()
    before = vq.codebook.clone()
    vq.to(torch.bfloat16)
    assert vq.sizes.dtype == vq.codebook.dtype == torch.float32
    assert torch.equal(vq.codebook, before)
    output = vq.train()(torch.randn(1, 3, 4, dtype=torch.bfloat16), torch.ones(1, 3, dtype=torch.bool))
    assert output.quantized.dtype == torch.bfloat16 and output.chosen.dtype == torch.float32
