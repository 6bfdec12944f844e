"""Questions to FactoredASR's trainer: eq. 1 to 3, what is drawn and masked, what is trained, a killed training."""

import math

import pytest
import torch
from tiny_training import build_trainer, read_run, relative_difference, run_apart

from clearspeech.trainers import losses, trainer_factored_asr
from clearspeech.trainers.losses import background_contrast_loss, transducer_loss

METHOD = "factored_asr"
TERMS = ("transducer", "ctc", "mi", "contrast")
PLAIN = dict(spec_augment=False, mask_probability=0.0)
WAVEFORMS = dict(model_type="wav2vec2", hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
WAVEFORMS |= dict(intermediate_size=32, conv_dim=[8] * 7, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def counts_of(trainer, batch):
    return trainer._get_num_items_in_batch([batch], torch.device("cpu"))


def terms_of(trainer, batch=None):
    batch = first_batch(trainer) if batch is None else batch
    return {
        name: value for name, (_, value) in trainer.terms(trainer.model, batch, counts_of(trainer, batch))[0].items()
    }


# --- the transducer's loss ---


def slow_transducer_cost(log_probabilities, labels, blank):
    """-log of the sum over all ways through the lattice (frames, labels + 1)."""
    num_frames, num_places, _ = log_probabilities.shape
    forward = torch.full((num_frames, num_places), -torch.inf, dtype=torch.double)
    forward[0, 0] = 0.0
    for frame in range(num_frames):
        for place in range(num_places):
            ways = [forward[frame, place]]
            if frame:
                ways.append(forward[frame - 1, place] + log_probabilities[frame - 1, place, blank])
            if place:
                ways.append(forward[frame, place - 1] + log_probabilities[frame, place - 1, labels[place - 1]])
            forward[frame, place] = torch.stack(ways).logsumexp(dim=0)
    return -(forward[-1, -1] + log_probabilities[-1, -1, blank])


def test_transducer_loss_is_the_sum_over_all_alignments_per_label(make_logits=torch.randn):
    logits = make_logits(3, 7, 5, 6)
    labels = torch.tensor([[1, 2, 3, 1], [4, 4, -100, -100], [2, -100, -100, -100]])
    mask = torch.arange(7) < torch.tensor([[7], [4], [1]])
    costs = [
        slow_transducer_cost(logits[row, : int(mask[row].sum()), : kept + 1].double().log_softmax(-1), labels[row], 5)
        for row, kept in enumerate((4, 2, 1))
    ]
    torch.testing.assert_close(transducer_loss(logits, labels, mask, 5).double(), sum(costs) / 7)
    torch.testing.assert_close(transducer_loss(logits, labels, mask, 5, num_labels=14).double(), sum(costs) / 14)


def test_transducer_loss_has_the_public_test_vectors_values():
    """torchaudio's own: cost and first gradients of one utterance, blank last."""
    values = (
        "0.1 0.6 0.1 0.1 0.1 0.1 0.1 0.6 0.1 0.1 0.1 0.1 0.2 0.8 0.1 "
        "0.1 0.6 0.1 0.1 0.1 0.1 0.1 0.2 0.1 0.1 0.7 0.1 0.2 0.1 0.1"
    )
    logits = torch.tensor([float(each) for each in values.split()]).view(1, 2, 3, 5).requires_grad_()
    loss = transducer_loss(logits, torch.tensor([[1, 2]]), torch.ones(1, 2, dtype=torch.bool), 4, num_labels=1)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(5.09566688538, abs=1e-5)
    expected = torch.tensor([0.17703132, -0.39992708, 0.17703132])
    torch.testing.assert_close(logits.grad[0, 0, 0, :3], expected, atol=1e-6, rtol=0)


def test_transducer_loss_has_the_values_of_two_utterances_with_blank_first():
    """The other public vector, warp-transducer's."""
    values = (
        "0.065357 0.787530 0.081592 0.529716 0.750675 0.754135 0.609764 0.868140 0.622532 0.668522 0.858039 0.164539 "
        "0.989780 0.944298 0.603168 0.946783 0.666203 0.286882 0.094184 0.366674 0.736168 0.166680 0.714154 0.399400 "
        "0.535982 0.291821 0.612642 0.324241 0.800764 0.524106 0.779195 0.183314 0.113745 0.240222 0.339470 0.134160 "
        "0.505562 0.051597 0.640290 0.430733 0.829473 0.177467 0.320700 0.042883 0.302803 0.675178 0.569537 0.558474 "
        "0.083132 0.060165 0.107958 0.748615 0.943918 0.486356 0.418199 0.652408 0.024243 0.134582 0.366342 0.295830 "
        "0.923670 0.689929 0.741898 0.250005 0.603430 0.987289 0.592606 0.884672 0.543450 0.660770 0.377128 0.358021"
    )
    logits, mask = torch.tensor([float(each) for each in values.split()]).view(2, 4, 3, 3), torch.ones(2, 4).bool()
    for row, (labels, cost) in enumerate((([1, 2], 4.2806528590890736), ([1, 1], 3.9384369822503591))):
        loss = transducer_loss(logits[row : row + 1], torch.tensor([labels]), mask[row : row + 1], 0, num_labels=1)
        assert float(loss) == pytest.approx(cost, abs=1e-5)


# --- the background contrast ---


def slow_contrast(context, lengths, positions, shifts, temperature, normalize, include_positive):
    """Eq. 2, utterance by utterance, frame by frame."""

    def score(first, second):
        if normalize:
            first, second = first / first.norm(), second / second.norm()
        return float(first @ second) / temperature

    total = 0.0
    for k, length in enumerate(lengths):
        pairs = []
        for i in range(length):
            j = int(positions[k, i])
            positive = score(context[k, i], context[k, j])
            others = [(k + shift) % len(lengths) for shift in shifts]
            negatives = [score(context[k, i], context[other, min(j, lengths[other] - 1)]) for other in others]
            denominator = sum(math.exp(each) for each in negatives + [positive] * include_positive)
            pairs.append(-math.log(math.exp(positive) / denominator))
        total += sum(pairs) / length
    return total / len(lengths)


@pytest.mark.parametrize("temperature, normalize, include_positive", [(1.0, False, False), (0.3, True, True)])
def test_contrast_is_eq_2_over_the_sampled_pairs(temperature, normalize, include_positive):
    context, lengths = torch.randn(4, 6, 5), [6, 1, 4, 3]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    positions = (torch.rand(4, 6) * torch.tensor(lengths)[:, None]).long()
    options = (temperature, normalize, include_positive)
    ours = background_contrast_loss(context, mask, positions, torch.tensor([1, 3]), *options)
    assert float(ours) == pytest.approx(slow_contrast(context, lengths, positions, [1, 3], *options), rel=1e-5)


def test_context_that_is_constant_in_an_utterance_and_differs_between_them_has_the_least_contrast():
    mask, positions = torch.ones(3, 5, dtype=torch.bool), torch.randint(5, (3, 5))
    constant = torch.eye(3)[:, None].expand(3, 5, 3)
    arguments = (mask, positions, torch.tensor([1, 2]), 0.1, True, True)
    assert background_contrast_loss(constant, *arguments) < background_contrast_loss(torch.randn(3, 5, 3), *arguments)


def test_a_batch_of_one_has_no_contrast():
    context = torch.randn(1, 5, 3, requires_grad=True)
    arguments = torch.ones(1, 5, dtype=torch.bool), torch.zeros(1, 5, dtype=torch.long)
    loss = background_contrast_loss(context, *arguments, torch.tensor([], dtype=torch.long))
    loss.backward()
    assert float(loss.detach()) == 0.0 and not context.grad.any()


# --- eq. 1 and 3 ---


def test_the_loss_is_eq_3(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, **PLAIN)
    batch = first_batch(trainer)
    counts = counts_of(trainer, batch)
    terms = terms_of(trainer, batch)
    assert terms.keys() == {"transducer", "ctc", "mi", "contrast"}
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts)
    equation = terms["transducer"] + 0.1 * terms["mi"] + 0.3 * terms["contrast"]
    torch.testing.assert_close(loss, equation + 0.5 * terms["ctc"])


def test_the_auxiliary_ctc_sums_over_all_alignments_of_the_frames_alone(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, ctc_weight=0.5, mi_weight=0.0, contrast_weight=0.0, **PLAIN)
    batch, model = first_batch(trainer), trainer.model
    terms = terms_of(trainer, batch)
    loss = trainer.compute_loss(model, batch, num_items_in_batch=counts_of(trainer, batch))
    torch.testing.assert_close(loss, terms["transducer"] + 0.5 * terms["ctc"])

    blank, total, num_labels = model.config.blank_token_id, 0.0, 0
    for features, mask, labels in zip(batch["input_features"], batch["attention_mask"], batch["labels"]):
        labels = labels[labels != -100].tolist()
        content = model.factors(features[None, : int(mask.sum())]).content
        probabilities = model.joint(torch.zeros(()), model.encoder_projector(content))[0].double().softmax(dim=-1)
        path = [blank, *[part for label in labels for part in (label, blank)]]  # blanks between labels may be left out
        reached = [probabilities[0, path[0]], probabilities[0, path[1]], *[0.0] * (len(path) - 2)]
        for frame in probabilities[1:]:
            skips = [place > 1 and path[place] not in (blank, path[place - 2]) for place in range(len(path))]
            reached = [
                frame[path[place]] * (sum(reached[max(place - 1, 0) : place + 1]) + skips[place] * reached[place - 2])
                for place in range(len(path))
            ]
        whole = reached[-1] + reached[-2]
        total -= whole.log() if whole > 0 else 0.0  # more labels than frames: for the transducer alone
        num_labels += len(labels)
    assert total > 0
    torch.testing.assert_close(terms["ctc"], (total / num_labels).float(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cyclic_error_is_eq_1_frame_by_frame(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, **PLAIN)
    batch, model = first_batch(trainer), trainer.model
    total, frames = 0.0, 0
    for features, mask in zip(batch["input_features"], batch["attention_mask"]):
        speech = model.factors(features[None, : int(mask.sum())])
        for content, context, frame in zip(speech.content[0], speech.context[0], features):
            phi = model.reconstruction
            total += (content - phi.content(context)).square().mean() + (
                context - phi.context(content)
            ).square().mean()
            total += (frame - phi.joint(torch.cat([content, context]))).square().mean()
            frames += 1
    torch.testing.assert_close(terms_of(trainer, batch)["mi"], total / frames, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target_grad, sign", [("reverse", -1.0), ("pass", 1.0), ("detach", 0.0)])
def test_gradients_into_what_is_reconstructed_are_as_chosen(target_grad, sign, tmp_path):
    trainer = build_trainer(METHOD, tmp_path, target_grad=target_grad, reversal_weight=0.5)
    factor = torch.randn(1, 2, 3, requires_grad=True)
    target = trainer.as_target(factor)
    weight = 0.5 if target_grad == "reverse" else 1.0
    if sign:
        target.sum().backward()
        torch.testing.assert_close(factor.grad, torch.full_like(factor, sign * weight))
    else:
        assert not target.requires_grad


def test_reversal_grows_over_its_ramp(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, reversal_weight=2.0, reversal_ramp_steps=4)
    weights = []
    for step in (0, 1, 3, 9):
        trainer.state.global_step = step
        weights.append(trainer.current_reversal_weight)
    assert weights == [0.5, 1.0, 2.0, 2.0]


def test_a_weight_of_zero_is_not_computed(tmp_path, monkeypatch):
    trainer = build_trainer(METHOD, tmp_path, ctc_weight=0.0, mi_weight=0.0, contrast_weight=0.0, **PLAIN)
    for name in ("background_contrast_loss", "ctc_loss", "masked_squared_error", "spec_augment"):
        monkeypatch.setattr(trainer_factored_asr, name, lambda *_: pytest.fail("computed"))
    monkeypatch.setattr(type(trainer.model.reconstruction), "forward", lambda *_: pytest.fail("computed"))
    assert terms_of(trainer).keys() == {"transducer"}


def test_without_factors_the_contrast_is_of_the_encoders_states(tmp_path, monkeypatch):
    seen = []
    contrast = losses.background_contrast_loss
    monkeypatch.setattr(
        trainer_factored_asr,
        "background_contrast_loss",
        lambda *args, **kw: seen.append(args[0]) or contrast(*args, **kw),
    )
    trainer = build_trainer(METHOD, tmp_path, mi_weight=0.0, config_fields={"factorize": False})
    assert terms_of(trainer).keys() == {"transducer", "ctc", "contrast"}
    assert seen[0].shape[-1] == trainer.model.config.encoder_config.hidden_size


# --- masks and pairs ---


def test_the_masked_frames_are_those_of_the_utterance_and_the_step(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, mask_probability=0.4, spec_augment=False)
    batch = first_batch(trainer)
    _, masked, frames = trainer.masked_inputs(batch)
    assert torch.equal(frames, batch["input_features"])  # what is reconstructed is not masked
    real = batch["attention_mask"].bool()
    assert 0.2 < float(masked[real].float().mean()) < 0.6
    row = {name: value[2:3] for name, value in batch.items()}
    assert torch.equal(trainer.masked_inputs(row)[1][0], masked[2])
    trainer.state.global_step = 1
    assert not torch.equal(trainer.masked_inputs(batch)[1], masked)


def test_the_spans_of_an_encoder_of_waveforms_are_those_of_the_utterance_and_the_step(tmp_path):
    encoder = WAVEFORMS | {"mask_time_prob": 0.3, "mask_time_length": 4}
    trainer = build_trainer(METHOD, tmp_path, mask_probability=0.0, config_fields={"encoder_config": encoder})
    mask = (torch.arange(32000) < torch.tensor([[32000], [20000], [26000]])).long()
    batch = {"input_values": torch.randn(3, 32000) * mask, "attention_mask": mask, "seeds": torch.tensor([5, 6, 7])}
    _, spans, _ = trainer.masked_inputs(batch)
    num_frames = trainer.model.state_mask(mask).sum(dim=1).tolist()
    assert all(0.1 < float(row[:length].float().mean()) < 0.5 for row, length in zip(spans, num_frames))
    row = {name: value[1:2, :20000] if value.dim() == 2 else value[1:2] for name, value in batch.items()}
    assert torch.equal(trainer.masked_inputs(row)[1][0], spans[1, : num_frames[1]])
    given = []
    trainer.model.frame_encoder.encoder.register_forward_pre_hook(
        lambda module, args, options: given.append(options["mask_time_indices"][0]), with_kwargs=True
    )
    trainer.model.factors(**{name: batch[name] for name in ("input_values", "attention_mask")}, masked_frames=spans)
    for seen, drawn, length in zip(given, spans, num_frames, strict=True):
        assert torch.equal(seen, drawn[:length])  # it draws none itself
    trainer.args.mask_probability = 0.2
    assert (trainer.masked_inputs(batch)[1] & spans).sum() == spans.sum()
    trainer.args.mask_probability, trainer.state.global_step = 0.0, 1
    assert not torch.equal(trainer.masked_inputs(batch)[1], spans)
    trainer.model.eval()
    assert trainer.masked_inputs(batch)[1] is None


def test_validation_sees_everything(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    trainer.model.eval()
    batch = first_batch(trainer)
    given, masked, _ = trainer.masked_inputs(batch)
    assert torch.equal(given, batch["input_features"]) and masked is None


def test_validation_counts_each_row_once(tmp_path):
    """The same in batches of five and of two; the contrast alone depends on a row's batch."""
    metrics = [
        build_trainer(METHOD, tmp_path / str(size), per_device_eval_batch_size=size).evaluate() for size in (5, 2)
    ]
    assert metrics[0].keys() - {"epoch"} == {f"eval_{name}" for name in ("loss", *TERMS)}
    for name in ("eval_transducer", "eval_ctc", "eval_mi"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], rel=1e-4)


# --- training ---


def test_recognition_improves_and_every_term_is_logged(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, max_steps=60, learning_rate=1e-2, logging_steps=10, **PLAIN)
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert lines[0].keys() >= {"loss", *TERMS}
    assert lines[-1]["transducer"] < 0.7 * lines[0]["transducer"]


def test_a_batch_of_one_trains_without_negatives(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, per_device_train_batch_size=1)
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len(lines) == 5 and all(line["contrast"] == 0.0 for line in lines)
    assert all(math.isfinite(line[name]) for line in lines for name in ("loss", *TERMS))
    for name, value in trainer.model.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[name]), name


@pytest.mark.parametrize("target_grad", ["reverse", "pass", "detach"])
def test_factors_that_run_from_each_other_stay_bounded(target_grad, tmp_path):
    """Eq. 1 has no bound: with factors of any length, errors would be in the hundreds."""
    arguments = dict(max_steps=120, learning_rate=1e-2, logging_steps=120, mi_weight=1.0, target_grad=target_grad)
    trainer = build_trainer(METHOD, tmp_path, **arguments)
    trainer.train()
    assert trainer.state.log_history[0]["mi"] < 10


@pytest.mark.parametrize(
    "encoder",
    [
        dict(model_type="lstm_encoder", input_size=24, hidden_size=16, num_hidden_layers=2),
        dict(
            model_type="conformer_encoder", input_size=24, hidden_size=16, num_attention_heads=2, intermediate_size=32
        ),
    ],
    ids=["lstm", "conformer"],
)
def test_every_weight_that_is_trained_moves(encoder, tmp_path):
    encoder = encoder | {"num_hidden_layers": 2}
    trainer = build_trainer(METHOD, tmp_path, config_fields={"encoder_config": encoder})
    before = {name: value.clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    still = {name for name, value in trainer.model.named_parameters() if torch.equal(value, before[name])}
    assert {name for name in still if "k_proj.bias" not in name} == set()  # a key's bias changes no attention


def test_what_no_term_trains_rests(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, mi_weight=0.0, contrast_weight=0.0)
    resting = {name.split(".")[0] for name, value in trainer.model.named_parameters() if not value.requires_grad}
    assert resting == {"reconstruction", "context_network"}


@pytest.mark.parametrize("killed_after", [3, 5])
def test_a_killed_training_ends_with_the_weights_of_an_unbroken_one(killed_after, tmp_path):
    arguments = dict(method=METHOD, max_steps=6, save_strategy="steps", save_steps=2, dropout=0.1)
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    assert run_apart(output_dir=whole, **arguments) == [0]
    assert run_apart(output_dir=killed, killed_after=killed_after, **arguments) == [-9]
    assert run_apart(output_dir=killed, resume=True, **arguments) == [0]
    assert relative_difference(read_run(killed)[0], read_run(whole)[0]) == 0.0


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"target_grad": "both"}, "target_grad must be one of"),
        ({"mask_probability": 1.0}, "mask_probability must be at least 0 and below 1"),
        ({"num_negatives": 0}, "num_negatives must be at least 1"),
        ({"config_fields": {"factorize": False}}, "the model has no factors"),
        ({"config_fields": {"encoder_config": WAVEFORMS | {"apply_spec_augment": False}}}, "nothing to put in place"),
        (
            {"config_fields": {"encoder_config": WAVEFORMS | {"mask_feature_prob": 0.1}}, "spec_augment": False},
            "masks features itself",
        ),
    ],
)
def test_arguments_that_cannot_work_are_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_trainer(METHOD, tmp_path, **fields)
