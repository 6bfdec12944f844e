"""Questions to BEST-RQ's model: labels, masks, the loss of eq. 1, padding, precision, saving, refusal."""

import math
import re

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_best_rq import make_best_rq
from transformers import AutoModel, AutoModelForPreTraining

from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.modeling.modeling_best_rq import BestRQForPreTraining, BestRQModel, draw_spans
from clearspeech.modeling.random_projection import RandomProjectionQuantizer

LENGTHS = (11, 7, 1)  # tokens


def make_inputs(lengths=LENGTHS, num_mel_bins: int = 16) -> dict[str, torch.Tensor]:
    """A padded batch with values behind the end, which must not matter."""
    features = torch.randn(len(lengths), 4 * max(lengths), num_mel_bins)
    mask = (torch.arange(features.shape[1]) < 4 * torch.tensor(lengths)[:, None]).long()
    return dict(input_features=features, attention_mask=mask)


def draw(num_tokens: int, seed: int = 0, **fields) -> torch.Tensor:
    return draw_spans(num_tokens, BestRQConfig(**fields), torch.Generator().manual_seed(seed))


# --- the quantizer ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_that_is_cast_keeps_its_labels(dtype):
    """Rounded projections and codes would be others."""
    model, inputs = make_best_rq(), make_inputs((200, 150))
    expected = model.quantize(**inputs)
    model.to(dtype)
    assert model.head.weight.dtype == dtype
    assert torch.equal(model.quantize(**inputs), expected)


def test_labels_are_those_of_a_plain_cosine_look_up():
    quantizer = RandomProjectionQuantizer(16, 64, 5)
    vectors = torch.randn(10, 12, 16)
    labels = quantizer(vectors)
    assert labels.shape == (10, 12) and labels.dtype == torch.int64
    for row, vector_row in zip(labels, vectors):
        for label, vector in zip(row, vector_row):
            cosines = [
                torch.nn.functional.cosine_similarity(vector @ quantizer.projection, code, dim=0)
                for code in quantizer.codebook
            ]
            assert int(label) == int(torch.stack(cosines).argmax())


def test_the_projection_is_xavier_uniform_and_codes_are_directions():
    quantizer = RandomProjectionQuantizer(320, 8192, 16)
    bound = math.sqrt(6 / (320 + 16))
    assert float(quantizer.projection.abs().max()) <= bound
    assert float(quantizer.projection.std()) == pytest.approx(bound / math.sqrt(3), rel=0.05)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(8192))
    torch.testing.assert_close(quantizer.codebook.mean(dim=0), torch.zeros(16), atol=0.02, rtol=0)


def test_nothing_of_the_quantizer_is_trained():
    model = make_best_rq()
    assert not any(name.startswith("quantizer") for name, _ in model.named_parameters())
    assert {name for name, _ in model.quantizer.named_buffers()} == {"projection", "codebook"}


def test_labels_are_of_four_frames_one_after_another_and_loudness_of_them_changes_nothing():
    model, inputs = make_best_rq(), make_inputs()
    labels = model.quantize(**inputs)
    frames = inputs["input_features"][1]
    for token in range(7):
        stacked = torch.cat(list(frames[4 * token : 4 * token + 4]))
        assert int(labels[1, token]) == int(model.quantizer(stacked[None]))
    assert labels[1, 7:].tolist() == [-100] * 4 and labels[2, 1:].tolist() == [-100] * 10
    assert torch.equal(model.quantize(3.0 * inputs["input_features"], inputs["attention_mask"]), labels)


def test_labels_are_the_same_under_autocast():
    model, inputs = make_best_rq(), make_inputs()
    expected = model.quantize(**inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(model.quantize(**inputs), expected)


# --- masks ---


@pytest.mark.parametrize("num_tokens", [1, 2, 5, 100])
def test_sixty_percent_of_an_utterance_are_masked_and_a_token_at_least(num_tokens):
    counts = torch.tensor([int(draw(num_tokens, seed).sum()) for seed in range(200)])
    assert 1 <= int(counts.min()) and int(counts.max()) - int(counts.min()) <= 1  # rounded up or down
    if num_tokens > 1:
        assert float(counts.float().mean()) / num_tokens == pytest.approx(0.6, abs=0.05)


def test_every_place_is_masked_as_often():
    share = torch.stack([draw(20, seed) for seed in range(600)]).float().mean(dim=0)
    torch.testing.assert_close(share, torch.full((20,), 0.6), atol=0.08, rtol=0)


def test_longer_spans_start_on_a_grid_of_their_length():
    masked = draw(23, mask_length=12, mask_probability=0.05)  # three tokens
    assert masked.shape == (23,)
    grid = torch.nn.functional.pad(masked, (0, 1), value=bool(masked[-1])).view(8, 3)
    assert torch.equal(grid.all(dim=1), grid.any(dim=1)) and 4 <= int(grid.any(dim=1).sum()) <= 5


def test_an_utterance_has_the_mask_and_noise_of_its_seed_in_any_batch():
    model, inputs = make_best_rq(), make_inputs()
    seeds = torch.tensor([3, 4, 5])
    stacked, mask = model.stack(**inputs)
    masked = model.draw_masks(mask, seeds)
    hidden = model.hide(stacked, masked, seeds)
    assert not masked[~mask].any()
    for row, length in enumerate(LENGTHS):
        alone_stacked, alone_mask = model.stack(inputs["input_features"][row : row + 1, : 4 * length])
        alone = model.draw_masks(alone_mask, seeds[row : row + 1])
        assert torch.equal(alone[0], masked[row, :length])
        alone_hidden = model.hide(alone_stacked, alone, seeds[row : row + 1])
        assert torch.equal(alone_hidden[0], hidden[row, : 4 * length])
    assert not torch.equal(model.draw_masks(mask, seeds + 1), masked)


def test_masked_frames_are_noise_of_a_tenth_and_the_others_as_they_were():
    model, inputs = make_best_rq(), make_inputs((200, 150))
    stacked, mask = model.stack(**inputs)
    seeds = torch.tensor([0, 1])
    masked = model.draw_masks(mask, seeds)
    hidden = model.hide(stacked, masked, seeds)
    frames = masked.repeat_interleave(4, dim=1)
    assert float(hidden[frames].std()) == pytest.approx(0.1, rel=0.03)
    assert abs(float(hidden[frames].mean())) < 0.005
    kept = ~frames & inputs["attention_mask"].bool()
    assert torch.equal(hidden[kept], inputs["input_features"][kept])


# --- eq. 1 ---


@torch.no_grad()
def test_the_loss_is_eq_1_token_by_token():
    model, inputs = make_best_rq(), make_inputs()
    seeds = torch.tensor([1, 2, 3])
    outputs = model(**inputs, seeds=seeds)
    labels = model.quantize(**inputs)  # of the unmasked features
    total, count = 0.0, 0
    for row, length in enumerate(LENGTHS):
        given = inputs["input_features"][row : row + 1, : 4 * length]
        stacked, _ = model.stack(given)
        hidden = model.hide(stacked, outputs.masked_tokens[row : row + 1, :length], seeds[row : row + 1])
        logits = model.head(model.model(hidden).last_hidden_state)[0]
        for token in outputs.masked_tokens[row].nonzero()[:, 0].tolist():
            scores = [math.exp(score) for score in logits[token].tolist()]
            total -= math.log(scores[int(labels[row, token])] / sum(scores))
            count += 1
    assert outputs.logits.shape == (count, 20) and outputs.labels.shape == (count,)
    assert float(outputs.loss) == pytest.approx(total / count, rel=1e-4)


def test_a_mask_and_labels_of_ones_own_are_taken():
    model, inputs = make_best_rq(), make_inputs()
    masked = torch.zeros(3, 11, dtype=torch.bool)
    masked[0, 2] = masked[1, 6] = True
    labels = torch.randint(20, (3, 11))
    outputs = model(**inputs, masked_tokens=masked, labels=labels)
    assert torch.equal(outputs.labels, labels[masked]) and torch.equal(outputs.masked_tokens, masked)
    outputs.loss.backward()
    assert model.head.weight.grad is not None


def test_masked_frames_are_not_seen():
    """What is masked changes nothing of what is predicted there."""
    model, inputs = make_best_rq(), make_inputs((9,))
    masked = torch.zeros(1, 9, dtype=torch.bool)
    masked[0, 4] = True
    changed = inputs["input_features"].clone()
    changed[0, 16:20] = torch.randn(4, 16)
    seeds = torch.tensor([0])
    first = model(**inputs, masked_tokens=masked, seeds=seeds).logits
    assert torch.equal(model(changed, masked_tokens=masked, seeds=seeds).logits, first)
    changed[0, 20] += 1.0
    assert not torch.allclose(model(changed, masked_tokens=masked, seeds=seeds).logits, first)


def test_without_seeds_masks_follow_the_random_state():
    model, inputs = make_best_rq(), make_inputs()
    torch.manual_seed(1)
    first = model(**inputs).masked_tokens
    assert not torch.equal(model(**inputs).masked_tokens, first)
    torch.manual_seed(1)
    assert torch.equal(model(**inputs).masked_tokens, first)


# --- the encoder ---


@pytest.mark.parametrize("fields", [{}, {"separable": False}, {"num_hidden_layers": 0}], ids=str)
@torch.no_grad()
def test_states_of_an_utterance_do_not_depend_on_its_batch(fields):
    model, inputs = make_best_rq(**fields).model, make_inputs()
    batch = model(**inputs, output_hidden_states=True)
    assert batch.attention_mask.sum(dim=1).tolist() == list(LENGTHS)
    further = model(
        torch.nn.functional.pad(inputs["input_features"], (0, 0, 0, 40), value=9.0),
        torch.nn.functional.pad(inputs["attention_mask"], (0, 40)),
    )
    for row, length in enumerate(LENGTHS):
        single = model(inputs["input_features"][row : row + 1, : 4 * length], output_hidden_states=True)
        for ours, theirs in zip(batch.hidden_states, single.hidden_states, strict=True):
            torch.testing.assert_close(ours[row, :length], theirs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(
            further.last_hidden_state[row, :length], single.last_hidden_state[0], atol=1e-5, rtol=1e-5
        )


@torch.no_grad()
def test_hidden_states_are_the_front_ends_and_each_layers():
    model, inputs = make_best_rq().model, make_inputs()
    outputs = model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    torch.testing.assert_close(outputs.hidden_states[0], model.front_end(**inputs)[0])
    assert outputs.hidden_states[-1] is outputs.last_hidden_state
    assert outputs.last_hidden_state.shape == (3, 11, 24)
    assert model(**inputs).hidden_states is None


@torch.no_grad()
def test_without_layers_the_front_end_is_all_there_is():
    model, inputs = make_best_rq(num_hidden_layers=0), make_inputs()
    outputs = model.model(**inputs, output_hidden_states=True)
    assert len(outputs.hidden_states) == 1
    torch.testing.assert_close(outputs.last_hidden_state, model.model.front_end(**inputs)[0])
    assert bool(model(**inputs).loss.isfinite())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_has_the_same_labels_and_nearly_the_same_states(dtype, tmp_path):
    make_best_rq().save_pretrained(tmp_path)
    inputs, seeds = make_inputs(), torch.tensor([1, 2, 3])
    whole = BestRQForPreTraining.from_pretrained(tmp_path)
    half = BestRQForPreTraining.from_pretrained(tmp_path, dtype=dtype)
    assert half.quantizer.codebook.dtype == torch.float32 and half.head.weight.dtype == dtype
    expected, ours = whole(**inputs, seeds=seeds), half(**inputs, seeds=seeds)
    assert torch.equal(ours.labels, expected.labels) and not ours.logits.isnan().any()
    torch.testing.assert_close(ours.logits.float(), expected.logits, atol=0.1, rtol=0.1)
    states = half.model(**inputs).last_hidden_state
    assert states.dtype == dtype and not states.isnan().any()  # nor behind the end


def test_gradient_checkpointing_gives_the_same_gradients():
    rates = dict.fromkeys(("dropout", "activation_dropout", "attention_dropout"), 0.0)
    model, inputs = make_best_rq(**rates).train(), make_inputs()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**inputs, seeds=torch.tensor([1, 2, 3])).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


# --- saving ---


@torch.no_grad()
def test_a_saved_model_is_the_same_with_its_labels_and_its_encoder_alone(tmp_path):
    model, inputs = make_best_rq(), make_inputs()
    model.save_pretrained(tmp_path)
    torch.manual_seed(5)  # another quantizer would be drawn
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert type(again) is BestRQForPreTraining
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    seeds = torch.tensor([1, 2, 3])
    assert torch.equal(again(**inputs, seeds=seeds).loss, model(**inputs, seeds=seeds).loss)
    encoder = AutoModel.from_pretrained(tmp_path)
    assert type(encoder) is BestRQModel
    expected = model.model(**inputs).last_hidden_state
    assert torch.equal(encoder(**inputs).last_hidden_state, expected)


def test_the_papers_encoder_has_its_size():
    """ "62.0M" of Table 3: with the head that predicts and the quantizer; within 1 %."""
    with torch.device("meta"):
        model = BestRQForPreTraining(BestRQConfig())
    numbers = [sum(value.numel() for value in part.state_dict().values()) for part in (model, model.model)]
    assert numbers == [61_884_500, 57_513_044]
    assert numbers[0] == pytest.approx(62.0e6, rel=0.01)
    assert model.config.samples_per_token == 512


# --- refusal ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"conv_channels": (8,)}, "one block at least"),
        ({"codebook_size": 0}, "codebook_size must be at least 1"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be at least 0"),
        ({"hidden_size": 512}, "multiple of num_attention_heads=12; got 512"),
        ({"hidden_size": 15, "num_attention_heads": 3}, "must be even"),
        ({"conv_kernel_size": 32}, "must be odd; got 32"),
        ({"conv_kernel": 5}, "exceed conv_stride=2 by an even number; got 5"),
        ({"conv_kernel": 1}, "got 1"),
        ({"layerdrop": 0.1}, "layerdrop must be 0, .* got 0.1"),
        ({"dropout_positions": 0.1}, "dropout_positions must be 0, .* got 0.1"),
        ({"mask_length": 6}, "multiple of the 4 mel frames of a token; got 6"),
        ({"mask_probability": 0.3}, "masks 120% of them"),
        ({"mask_probability": 0.0}, "masks 0% of them"),
    ],
)
def test_configurations_that_cannot_be_are_refused(fields, message):
    with pytest.raises(StrictDataclassClassValidationError) as error:
        BestRQConfig(**fields)
    assert re.search(message, str(error.value.__cause__ or error.value))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input_features": torch.zeros(3, 44, 15)}, r"\(batch, frames, 16\); got shape \(3, 44, 15\)"),
        ({"input_features": torch.zeros(44, 16)}, r"\(batch, frames, 16\); got shape \(44, 16\)"),
        ({"input_features": torch.zeros(3, 0, 16)}, r"got shape \(3, 0, 16\)"),
        ({"attention_mask": torch.ones(3, 11)}, r"attention_mask must be \(batch, frames\) = \(3, 44\)"),
        ({"masked_tokens": torch.ones(3, 44).bool()}, r"masked_tokens must be \(batch, tokens\) = \(3, 11\)"),
        ({"masked_tokens": torch.ones(3, 11).bool()}, "hides 14 tokens of padding"),
        ({"masked_tokens": torch.zeros(3, 11).bool()}, "hides no token"),
        ({"labels": torch.zeros(3, 44).long()}, r"labels must be \(batch, tokens\) = \(3, 11\)"),
    ],
)
def test_inputs_of_other_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        make_best_rq()(**make_inputs() | fields)
