"""Questions to the voting quantizer: eq. 1 to 3, ids, gradients, precision, robustness to a noisy minority."""

import pytest
import torch

from clearspeech.modeling.quantization import VotingLFQ, binarize, bits_to_codes, codes_to_bits, straight_through

DIM, BITS, VOTERS = 6, 5, 3


@pytest.fixture
def quantizer() -> VotingLFQ:
    torch.manual_seed(0)
    return VotingLFQ(DIM, BITS, VOTERS)


def slow_scores(quantizer: VotingLFQ, frame: torch.Tensor) -> list[float]:
    """Eq. 1 and 2 for one frame `(dim,)` in plain Python: the mean vote of each bit."""
    weight, bias = quantizer.project_in.weight.tolist(), quantizer.project_in.bias.tolist()
    votes = []
    for voter in range(VOTERS):
        rows = range(voter * BITS, (voter + 1) * BITS)
        projections = [sum(w * x for w, x in zip(weight[row], frame.tolist())) + bias[row] for row in rows]
        votes.append([1.0 if projection > 0 else -1.0 for projection in projections])
    return [sum(vote[bit] for vote in votes) / VOTERS for bit in range(BITS)]


def test_training_passes_on_the_mean_vote_of_equation_2(quantizer):
    frames = torch.randn(2, 4, DIM)
    output = quantizer.train()(frames)
    for batch in range(2):
        for frame in range(4):
            expected = torch.tensor(slow_scores(quantizer, frames[batch, frame]))
            torch.testing.assert_close(output.scores[batch, frame], expected)
            passed_on = quantizer.project_out.weight @ expected
            torch.testing.assert_close(output.quantized[batch, frame], passed_on)


def test_inference_passes_on_the_majority_of_equation_3_whose_bits_are_the_id(quantizer):
    frames = torch.randn(2, 4, DIM)
    output = quantizer.eval()(frames)
    for batch in range(2):
        for frame in range(4):
            signs = [1.0 if score > 0 else -1.0 for score in slow_scores(quantizer, frames[batch, frame])]
            code = sum(2**bit for bit, sign in enumerate(signs) if sign > 0)  # least significant bit first
            assert int(output.codes[batch, frame]) == code
            passed_on = quantizer.project_out.weight @ torch.tensor(signs)
            torch.testing.assert_close(output.quantized[batch, frame], passed_on)


def test_training_and_inference_give_the_same_ids(quantizer):
    frames = torch.randn(3, 50, DIM)
    assert torch.equal(quantizer.train()(frames).codes, quantizer.eval()(frames).codes)


def test_the_papers_token_3485_has_its_bits_least_significant_first():
    bits = codes_to_bits(torch.tensor(3485), 13)
    assert [int(bit > 0) for bit in bits] == [int(digit) for digit in reversed(f"{3485:013b}")]
    flipped = bits.clone()
    flipped[5] *= -1  # "bit #5" of table 6
    assert int(bits_to_codes(flipped)) == 3485 ^ (1 << 5)


def test_codes_and_bits_are_each_others_inverse():
    codes = torch.arange(2**BITS).view(4, -1)
    bits = codes_to_bits(codes, BITS)
    assert bits.shape == (4, 2**BITS // 4, BITS)
    assert set(bits.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(bits_to_codes(bits), codes)


@pytest.mark.parametrize("code", [-1, 2**BITS])
def test_ids_outside_the_codebook_are_refused(code):
    with pytest.raises(ValueError, match=rf"codes must lie in \[0, 32\); got values from .*{code}"):
        codes_to_bits(torch.tensor([3, code]), BITS)


def test_zero_votes_minus_one():
    assert binarize(torch.tensor([-0.5, -0.0, 0.0, 1e-30])).tolist() == [-1.0, -1.0, -1.0, 1.0]


def test_straight_through_is_the_sign_forward_and_the_identity_backward():
    values = torch.tensor([-3.0, 1e-8, 4.2e7], requires_grad=True)
    quantized = straight_through(values, binarize(values))
    assert quantized.tolist() == [-1.0, 1.0, 1.0]  # exact, however large the value
    (quantized * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert values.grad.tolist() == [1.0, 2.0, 3.0]


def test_every_voter_gets_its_share_of_the_gradient(quantizer):
    frames = torch.randn(2, 4, DIM)
    output = quantizer.train()(frames)
    output.scores.sum().backward()
    expected = frames.sum(dim=(0, 1)) / VOTERS
    for row in quantizer.project_in.weight.grad:
        torch.testing.assert_close(row, expected)


def test_autocast_does_not_reach_the_projections(quantizer):
    frames = torch.randn(4, 200, DIM)
    expected = quantizer(frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(frames)
    assert output.projections.dtype == torch.float32
    assert torch.equal(output.projections, expected.projections)
    assert torch.equal(output.codes, expected.codes)


def test_a_quantizer_loaded_in_bfloat16_projects_in_float32(quantizer):
    quantizer = quantizer.to(torch.bfloat16)
    frames = torch.randn(4, 200, DIM).bfloat16()
    output = quantizer(frames)
    reference = quantizer.float()(frames.float())  # the same rounded weights and frames
    assert output.projections.dtype == torch.float32
    assert output.quantized.dtype == torch.bfloat16
    assert torch.equal(output.codes, reference.codes)


@pytest.mark.parametrize("num_voters", [3, 5, 7])
def test_the_majority_outvotes_a_noisy_minority(num_voters):
    projections = torch.randn(1, 1, 100, BITS).expand(num_voters, -1, -1, -1).clone()
    quantizer = VotingLFQ(DIM, BITS, num_voters)
    clean = quantizer.vote(projections)
    projections[: num_voters // 2] *= -1  # every bit of a minority is wrong
    noisy = quantizer.vote(projections)
    assert torch.equal(noisy.codes, clean.codes)
    assert noisy.scores.abs().max() < 0.5 < clean.scores.abs().min()


def test_noisy_voters_alone_see_the_perturbed_view(quantizer):
    clean, perturbed = torch.randn(2, 4, DIM), torch.randn(2, 4, DIM)
    mixed = quantizer(clean, perturbed, torch.tensor([False, True, False])).projections
    assert torch.equal(mixed[0], quantizer.project(clean)[0])
    assert torch.equal(mixed[1], quantizer.project(perturbed)[1])
    assert torch.equal(mixed[2], quantizer.project(clean)[2])


def test_biases_are_optional():
    names = dict(VotingLFQ(DIM, BITS, VOTERS, projection_bias=False, output_bias=True).named_parameters())
    assert set(names) == {"project_in.weight", "project_out.weight", "project_out.bias"}


def test_ids_are_lucidrains_with_the_bits_reversed():
    oracle = pytest.importorskip("vector_quantize_pytorch")
    lfq = oracle.LFQ(dim=BITS, codebook_size=2**BITS)
    frames = torch.randn(2, 40, BITS)
    indices = lfq.eval()(frames)[1]  # most significant bit first
    assert torch.equal(bits_to_codes(binarize(frames)), bits_to_codes(codes_to_bits(indices, BITS).flip(-1)))


def test_a_fitted_quantizer_keeps_most_of_the_frames_and_its_voters_differ(quantizer):
    frames = torch.randn(500, DIM) @ torch.randn(DIM, DIM) + 3.0
    before = (quantizer.eval()(frames[None]).quantized - frames).pow(2).mean()
    mean = quantizer.fit(frames)
    output = quantizer(frames[None])
    assert (output.quantized + mean - frames).pow(2).mean() < 0.5 * frames.var(dim=0).mean() < before
    assert not torch.equal(quantizer.project_in.weight[:BITS], quantizer.project_in.weight[BITS : 2 * BITS])
    assert (output.scores[0] > 0).float().mean(dim=0).sub(0.5).abs().max() < 0.1  # every bit is used


def test_bits_that_repeat_each_other_are_fitted_by_the_shortest_best_guess(quantizer):
    frames = torch.randn(500, 1).sign() @ torch.randn(1, DIM)  # two different frames, which need one bit
    mean = quantizer.fit(frames)
    scores = quantizer(frames[None]).scores[0].detach()
    assert torch.linalg.matrix_rank(scores) < BITS
    expected = torch.linalg.lstsq(scores.double(), (frames - mean).double(), driver="gelsd").solution
    torch.testing.assert_close(quantizer.project_out.weight.T, expected.float(), atol=1e-4, rtol=1e-4)


def test_fitting_needs_more_frames_than_dimensions(quantizer):
    with pytest.raises(ValueError, match="more frames than dimensions"):
        quantizer.fit(torch.randn(DIM, DIM))
