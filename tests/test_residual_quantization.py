"""Questions to the residual quantizer: DAC's own, residuals, gradients, dropped books, precision."""

import pytest
import torch
from torch.nn.functional import one_hot
from transformers import DacConfig
from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

from clearspeech.modeling.residual_quantization import (
    FactorizedQuantizer,
    ResidualQuantizer,
    SemanticQuantizer,
    draw_depths,
)

DIM, BOOKS, SIZE, CODE_DIM = 16, 3, 20, 4


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    return ResidualQuantizer(BOOKS, DIM, SIZE, CODE_DIM)


@pytest.fixture
def mask() -> torch.Tensor:
    return torch.arange(7) < torch.tensor([[7], [4]])


def test_it_is_dacs(quantizer):
    """The same codes, vectors and losses from the same weights, where DAC's losses are means."""
    config = DacConfig(n_codebooks=BOOKS, codebook_size=SIZE, codebook_dim=CODE_DIM, encoder_hidden_size=1)
    assert config.hidden_size == DIM
    dac = DacResidualVectorQuantizer(config).eval()
    for theirs, ours in zip(dac.quantizers, quantizer.books):
        theirs.codebook.load_state_dict(ours.codebook.state_dict())
        for name, layer in (("in_proj", ours.input_projection), ("out_proj", ours.output_projection)):
            weights = {"weight": layer.weight[..., None], "bias": layer.bias}
            getattr(theirs, name).load_state_dict(weights)
    latents = torch.randn(2, 7, DIM)
    vectors, codes, _, commitment, codebook = dac(latents.transpose(1, 2))
    output = quantizer(latents, torch.ones(2, 7, dtype=torch.bool))
    assert torch.equal(output.codes, codes)
    torch.testing.assert_close(output.quantized, vectors.transpose(1, 2))
    torch.testing.assert_close(output.commitment_loss.sum() / 14, commitment[0])  # DAC repeats it for each row
    torch.testing.assert_close(output.codebook_loss.sum() / 14, codebook[0])
    torch.testing.assert_close(quantizer.embed(output.codes, range(BOOKS)), output.quantized)


def test_the_code_is_the_one_of_the_nearest_direction():
    book = FactorizedQuantizer(DIM, SIZE, CODE_DIM)
    latents = torch.randn(1, 9, DIM)
    projected = book.input_projection(latents)
    expected = torch.cosine_similarity(projected[:, :, None], book.codebook.weight, dim=-1).argmax(dim=-1)
    vectors, codes, _, _ = book(latents)
    assert torch.equal(codes, expected)
    torch.testing.assert_close(vectors, book.output_projection(book.codebook(codes)))


def test_gradients_go_straight_through_and_losses_to_their_side(quantizer, mask):
    latents = torch.randn(2, 7, DIM, requires_grad=True)
    quantizer(latents, mask).quantized.sum().backward()
    assert bool(latents.grad.any())
    assert all(book.codebook.weight.grad is None for book in quantizer.books)
    book = quantizer.books[0]
    latents = torch.randn(2, 7, DIM, requires_grad=True)
    _, _, commitment, codebook = book(latents)
    moved = [latents, book.codebook.weight]
    by_commitment = torch.autograd.grad(commitment.sum(), moved, allow_unused=True)
    by_codebook = torch.autograd.grad(codebook.sum(), moved, allow_unused=True)
    assert bool(by_commitment[0].any()) and by_commitment[1] is None
    assert by_codebook[0] is None and bool(by_codebook[1].any())


def test_padding_has_no_loss(quantizer, mask):
    latents = torch.randn(2, 7, DIM)
    output = quantizer(latents, mask)
    alone = quantizer(latents[1:, :4], mask[1:, :4])
    torch.testing.assert_close(output.commitment_loss[1:], alone.commitment_loss)
    torch.testing.assert_close(output.codebook_loss[1:], alone.codebook_loss)


def test_dropped_books_give_neither_vectors_nor_losses(quantizer, mask):
    latents = torch.randn(2, 7, DIM)
    full = quantizer(latents, mask)
    output = quantizer(latents, mask, depths=torch.tensor([0, 2]))
    assert torch.equal(output.codes, full.codes)
    assert not output.quantized[0].any()
    assert output.commitment_loss[0] == 0 and output.codebook_loss[0] == 0
    torch.testing.assert_close(output.quantized[1], quantizer.embed(full.codes[1:, :2], range(2))[0])
    two = quantizer(latents, mask, num_books=2)
    assert two.codes.shape == (2, 2, 7)
    torch.testing.assert_close(two.codebook_loss[1], output.codebook_loss[1])


def test_no_book_at_all_gives_zeros(quantizer, mask):
    output = quantizer(torch.randn(2, 7, DIM), mask, num_books=0)
    assert output.codes.shape == (2, 0, 7) and not output.quantized.any()


def test_depths_are_drawn_for_a_share_of_the_utterances():
    depths = draw_depths(20_000, 0.5, 0, 9, torch.device("cpu"))
    shares = one_hot(depths, 10).float().mean(dim=0)
    torch.testing.assert_close(shares[:9], torch.full((9,), 0.05), atol=0.01, rtol=0)
    assert float(shares[9]) == pytest.approx(0.55, abs=0.02)
    assert draw_depths(100, 0.0, 0, 9, torch.device("cpu")).eq(9).all()
    assert draw_depths(1000, 1.0, 1, 9, torch.device("cpu")).min() == 1


def test_quantizing_is_in_full_precision_under_autocast(quantizer, mask):
    latents = torch.randn(2, 7, DIM)
    expected = quantizer(latents, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = quantizer(latents, mask)
    assert output.quantized.dtype == torch.float32
    torch.testing.assert_close(output.quantized, expected.quantized, atol=0, rtol=0)
    assert quantizer.half()(latents.half(), mask).quantized.dtype == torch.float32


def test_silence_has_codes(quantizer, mask):
    output = quantizer(torch.zeros(2, 7, DIM), mask)
    assert bool(output.quantized.isfinite().all())


def test_the_semantic_book_knows_its_nearest_centroids_and_keeps_its_digits():
    book = SemanticQuantizer(5, DIM)
    book.codebook.fill_(float("nan"))
    assert not book.is_fitted
    book.codebook.copy_(torch.randn(5, DIM) / 3)
    assert book.is_fitted
    states = torch.randn(2, 7, DIM)
    vectors, codes = book(states)
    assert torch.equal(codes, torch.cdist(states, book.codebook[None]).argmin(dim=-1))
    assert torch.equal(vectors, book.codebook[codes])
    kept = book.codebook.clone()
    assert torch.equal(book.half().codebook, kept)
