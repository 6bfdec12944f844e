"""Questions to the losses: the equations against slow references, exactness of the factorised entropies, padding."""

import math

import pytest
import torch
from torch import Tensor

from clearspeech.modeling.quantization import binarize, codes_to_bits
from clearspeech.trainers.losses import (
    batch_entropy,
    bit_entropy,
    commitment_loss,
    consensus_loss,
    cross_entropy,
    ctc_loss,
)

VOTERS, BATCH, FRAMES, BITS = 3, 2, 7, 5


@pytest.fixture
def projections() -> Tensor:
    torch.manual_seed(0)
    return 0.4 * torch.randn(VOTERS, BATCH, FRAMES, BITS, dtype=torch.float64)


@pytest.fixture
def mask() -> Tensor:
    mask = torch.ones(BATCH, FRAMES, dtype=torch.bool)
    mask[1, 4:] = False
    return mask


def full_softmax(projections: Tensor, temperature: float) -> Tensor:
    """The assignment to all `2**bits` codes that the factorised losses never build: `(..., codes)`."""
    codes = codes_to_bits(torch.arange(2 ** projections.shape[-1]), projections.shape[-1]).to(projections)
    return (2 * projections @ codes.T / temperature).softmax(dim=-1)


def entropy(distribution: Tensor) -> Tensor:
    return -torch.special.xlogy(distribution, distribution.clamp_min(1e-300)).sum(dim=-1)


@pytest.mark.parametrize("temperature", [0.01, 0.3, 2.0])
def test_bit_entropy_equals_the_full_softmax(projections, mask, temperature):
    expected = entropy(full_softmax(projections, temperature))[:, mask].mean()
    assert abs(float(bit_entropy(projections, mask, temperature) - expected)) < 1e-6


@pytest.mark.parametrize("temperature", [0.01, 0.3, 2.0])
@pytest.mark.parametrize("bits", [1, 2, 5])
def test_batch_entropy_equals_the_full_softmax(projections, mask, temperature, bits):
    projections = projections[..., :bits]
    means = full_softmax(projections, temperature)[:, mask].mean(dim=1)  # (voters, codes)
    expected = entropy(means).mean()
    assert abs(float(batch_entropy(projections, mask, temperature) - expected)) < 1e-6


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_gradients_of_the_entropies_equal_the_full_softmaxs(projections, mask, temperature):
    ours, reference = projections.clone().requires_grad_(), projections.clone().requires_grad_()
    (bit_entropy(ours, mask, temperature) - batch_entropy(ours, mask, temperature)).backward()
    assignment = full_softmax(reference, temperature)[:, mask]
    (entropy(assignment).mean() - entropy(assignment.mean(dim=1)).mean()).backward()
    torch.testing.assert_close(ours.grad, reference.grad, atol=1e-6, rtol=0)


def test_the_papers_codebook_of_8192_codes_is_exact_too():
    projections, mask = 0.02 * torch.randn(1, 1, 30, 13, dtype=torch.float64), torch.ones(1, 30, dtype=torch.bool)
    assignment = full_softmax(projections, 0.01)[:, mask]
    assert abs(float(bit_entropy(projections, mask, 0.01) - entropy(assignment).mean())) < 1e-6
    assert abs(float(batch_entropy(projections, mask, 0.01) - entropy(assignment.mean(dim=1)).mean())) < 1e-6


def test_an_undecided_codebook_has_the_entropy_of_all_its_codes(mask):
    undecided = torch.zeros(VOTERS, BATCH, FRAMES, BITS)
    assert float(bit_entropy(undecided, mask, 0.01)) == pytest.approx(BITS * math.log(2))
    assert float(batch_entropy(undecided, mask, 0.01)) == pytest.approx(BITS * math.log(2))


def test_decided_bits_have_no_entropy_and_no_nan_however_large_they_are(mask):
    projections = (1000.0 * torch.randn(VOTERS, BATCH, FRAMES, BITS)).requires_grad_()
    uncertainty, spread = bit_entropy(projections, mask, 0.01), batch_entropy(projections, mask, 0.01)
    (uncertainty - spread).backward()
    assert uncertainty.item() == 0.0
    assert 0.0 < spread.item() <= math.log(mask.sum()) + 1e-6
    assert torch.isfinite(projections.grad).all()


def test_autocast_does_not_reach_the_batch_entropy(projections, mask):
    projections = projections.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spread = batch_entropy(projections, mask, 0.3)
    assert float(spread) == float(batch_entropy(projections, mask, 0.3))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_consensus_is_the_distance_to_the_mean_voter_of_equation_4(projections, mask, reduction):
    total = 0.0
    for batch, frame in mask.nonzero().tolist():
        voters = projections[:, batch, frame]
        mean = sum(voters) / VOTERS
        squared = sum(float(((voter - mean) ** 2).sum()) for voter in voters) / VOTERS
        total += squared / BITS if reduction == "mean" else squared
    expected = total / int(mask.sum())
    assert float(consensus_loss(projections, mask, reduction=reduction)) == pytest.approx(expected)


def test_consensus_refuses_other_reductions(projections, mask):
    with pytest.raises(ValueError, match='"mean" or "sum"; got \'max\''):
        consensus_loss(projections, mask, reduction="max")


def test_a_detached_consensus_is_an_anchor(projections, mask):
    anchored, free = projections.clone().requires_grad_(), projections.clone().requires_grad_()
    consensus_loss(anchored, mask).backward()
    consensus_loss(free, mask, detach=False).backward()
    distance = projections - projections.mean(dim=0)
    expected = 2 * distance * mask[..., None] / (VOTERS * BITS * mask.sum())
    torch.testing.assert_close(anchored.grad, expected)
    # distances to a mean sum to zero, so the mean's own gradient vanishes: both ways train alike
    torch.testing.assert_close(free.grad, expected)


def test_commitment_is_the_distance_to_the_mean_vote_which_is_constant(projections, mask):
    projections.requires_grad_()
    scores = binarize(projections).mean(dim=0).requires_grad_()
    loss = commitment_loss(projections, scores, mask)
    total = 0.0
    for batch, frame in mask.nonzero().tolist():
        for voter in range(VOTERS):
            total += ((projections[voter, batch, frame] - scores[batch, frame]) ** 2).mean().item()
    assert loss.item() == pytest.approx(total / VOTERS / int(mask.sum()))
    loss.backward()
    assert scores.grad is None


@pytest.mark.parametrize(
    "loss",
    [
        lambda projections, mask: consensus_loss(projections, mask),
        lambda projections, mask: commitment_loss(projections, binarize(projections).mean(dim=0), mask),
        lambda projections, mask: bit_entropy(projections, mask, 0.3),
        lambda projections, mask: batch_entropy(projections, mask, 0.3),
    ],
    ids=["consensus", "commitment", "bit_entropy", "batch_entropy"],
)
def test_masked_frames_never_count(projections, mask, loss):
    expected = float(loss(projections, mask))
    changed = projections.masked_fill(~mask[..., None], 7.7).requires_grad_()
    value = loss(changed, mask)
    value.backward()
    assert float(value) == expected
    assert changed.grad[:, ~mask].abs().max() == 0.0


def test_a_mean_over_the_step_is_the_sum_of_its_micro_batches(projections, mask):
    whole = consensus_loss(projections, mask)
    parts = [consensus_loss(projections[:, [row]], mask[[row]], mask.sum()) for row in range(BATCH)]
    assert float(sum(parts)) == pytest.approx(float(whole))
    whole = bit_entropy(projections, mask, 0.3)
    parts = [bit_entropy(projections[:, [row]], mask[[row]], 0.3, mask.sum()) for row in range(BATCH)]
    assert float(sum(parts)) == pytest.approx(float(whole))


def test_cross_entropy_counts_labels_not_padding():
    logits, labels = torch.randn(2, 4, 9), torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(expected))
    assert float(cross_entropy(logits, labels, 12)) == pytest.approx(float(expected) / 2)


def test_ctc_is_the_sum_over_all_alignments():
    """Two frames and the label 1 (blank 0): `1 1`, `0 1` and `1 0` are its alignments. The third frame is padding."""
    logits = torch.randn(1, 3, 4)
    blank, one = logits[0, :2].softmax(dim=-1)[:, :2].T
    expected = -math.log(one[0] * one[1] + blank[0] * one[1] + one[0] * blank[1])
    frame_mask, labels = torch.tensor([[True, True, False]]), torch.tensor([[1, 0, -100]])  # 0 ends the text
    assert float(ctc_loss(logits, frame_mask, labels, 0, num_labels=1)) == pytest.approx(expected, rel=1e-5)


def test_a_text_longer_than_its_speech_costs_nothing_in_ctc():
    logits, frame_mask = torch.randn(1, 2, 4, requires_grad=True), torch.ones(1, 2, dtype=torch.bool)
    loss = ctc_loss(logits, frame_mask, torch.tensor([[1, 2, 3, 0]]), 0)
    loss.backward()
    assert float(loss) == 0.0
    assert logits.grad.abs().max() == 0.0


def test_lfq_terms_agree_with_lucidrains(projections, mask):
    oracle = pytest.importorskip("vector_quantize_pytorch")
    frames = projections[:1, 0].float()  # one voter, all frames real
    lfq = oracle.LFQ(dim=BITS, codebook_size=2**BITS, entropy_loss_weight=1.0, commitment_loss_weight=1.0).train()
    _, terms = lfq(frames, inv_temperature=100.0, return_loss_breakdown=True)
    every, voter = mask[:1], frames[None]
    assert float(bit_entropy(voter, every, 0.01)) == pytest.approx(float(terms.per_sample_entropy), abs=1e-3)
    assert float(batch_entropy(voter, every, 0.01)) == pytest.approx(float(terms.batch_entropy), rel=6e-3)
    commitment = commitment_loss(voter, binarize(frames), every)
    assert float(commitment) == pytest.approx(float(terms.commitment), rel=1e-4)
