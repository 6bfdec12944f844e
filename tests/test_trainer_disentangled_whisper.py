"""Questions to DisentangledWhisper's trainer: eq. 3 to 7, the frozen Whisper, W_NC, kept states, a killed training."""

import pytest
import torch
from datasets import Dataset
from tiny_training import build_trainer, pair_corpus, read_run, relative_difference, run_apart

from clearspeech.trainers import trainer_disentangled_whisper
from clearspeech.trainers.encoder_states import EncoderStatesCollator, cache_encoder_states
from clearspeech.trainers.trainer_disentangled_whisper import DisentangledWhisperTrainingArguments

METHOD = "disentangled_whisper"
FOLLOWING = dict(noise_weight_schedule="inverse_accuracy", eval_strategy="steps", eval_steps=2)


def first_batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def counts_of(trainer, batch):
    return trainer._get_num_items_in_batch([batch], torch.device("cpu"))


def slow_terms(trainer, batch, commitment_target):
    """Eq. 4 to 7, utterance by utterance and frame by frame, in evaluation mode."""
    model, extractor = trainer.model, trainer.feature_extractor
    sums = {"cross_entropy": 0.0, "commitment": 0.0, "semantic": 0.0, "noise": 0.0}
    counts = dict.fromkeys(sums, 0)
    for row, length in enumerate(batch["num_samples"].tolist()):
        views = [
            extractor(batch[name][row, :length], sampling_rate=16000, return_tensors="pt")
            for name in ("waveforms", "clean_waveforms")
        ]
        clean_states = model.model.encoder_states(**views[1])[0]
        noisy, clean = model.encode_speech(**views[0]), model.model(**views[1])
        text = batch["labels"][row][batch["labels"][row] >= 0]
        logits = model(**views[0], labels=text[None]).logits[0].log_softmax(dim=-1)
        for token, each in zip(text, logits):
            sums["cross_entropy"] -= each[token]
            counts["cross_entropy"] += 1
        for frame in range(int(noisy.attention_mask.sum())):
            codes = {
                view: model.model.embed_codes(each.audio_codes[0, frame]) for view, each in zip("nc", (noisy, clean))
            }
            error = {
                "clean_latents": clean.latents[0, frame] - codes["n"],
                "clean_codes": noisy.latents[0, frame] - codes["c"],
                "own_codes": noisy.latents[0, frame] - codes["n"],
            }[commitment_target]
            sums["commitment"] += error.square().mean()
            counts["commitment"] += 1
        for state in range(int(views[0]["attention_mask"][0, ::2].sum())):
            sums["semantic"] += (clean_states[state] - noisy.last_hidden_state[0, state]).square().mean()
            counts["semantic"] += 1
        sums["noise"] -= noisy.noise_logits[0].log_softmax(dim=-1)[batch["noise_labels"][row]]
        counts["noise"] += 1
    return {name: value / counts[name] for name, value in sums.items()}


@pytest.mark.parametrize("commitment_target", ["clean_codes", "clean_latents", "own_codes"])
def test_the_terms_are_the_papers_equations(tmp_path, commitment_target):
    trainer = build_trainer(METHOD, tmp_path, commitment_target=commitment_target)
    trainer.model.eval()
    batch = first_batch(trainer)
    terms, _ = trainer.terms(trainer.model, batch, counts_of(trainer, batch))
    expected = slow_terms(trainer, batch, commitment_target)
    assert terms.keys() == expected.keys()
    for name, (_, value) in terms.items():
        assert value.item() == pytest.approx(expected[name].item(), rel=1e-4), name
    assert {name: weight for name, (weight, _) in terms.items()} == {
        "cross_entropy": 1.0,
        "commitment": 0.5,
        "semantic": 0.5,
        "noise": 0.1,
    }


def test_the_logged_loss_is_the_weighted_sum_of_the_logged_terms(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    trainer.train()
    for line in (line for line in trainer.state.log_history if "loss" in line):
        total = line["cross_entropy"] + 0.5 * line["commitment"] + 0.5 * line["semantic"] + 0.1 * line["noise"]
        assert line["loss"] == pytest.approx(total, abs=1e-5)
        assert 0 < line["codebook_usage"] <= 100


def test_eq_5_as_printed_moves_the_noisy_latents_and_leaves_the_clean_branch_alone(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, asr_weight=0.0, semantic_weight=0.0, noise_weight=0.0)
    model, batch = trainer.model, first_batch(trainer)
    model.eval()
    noisy, clean, mask = trainer.both_states(batch)
    speech = model.encode_speech(None, mask, noisy)
    speech.latents.retain_grad()
    latents, _ = trainer.clean_branch(clean, model.state_mask(clean, mask))
    assert not latents.requires_grad
    error = trainer_disentangled_whisper.masked_squared_error(speech.quantized, latents, speech.attention_mask)
    error.backward()
    count = speech.attention_mask.sum() * latents.shape[-1]
    expected = 2 * (speech.quantized - latents) * speech.attention_mask.unsqueeze(-1) / count
    assert torch.allclose(speech.latents.grad, expected, atol=1e-8)


def test_whisper_is_bit_identical_after_training_and_the_rest_is_not(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, clean_is_unknown=True)
    before = {name: weights.clone() for name, weights in trainer.model.state_dict().items()}
    trainer.train()
    whisper = ("model.encoder.", "decoder.", "proj_out.")
    for name, weights in trainer.model.state_dict().items():
        if name.startswith(whisper):
            assert torch.equal(weights, before[name]), name
    for name in (
        "model.latent_encoder.project.weight",
        "model.quantizer.codebook",
        "model.noise_head.classifier.bias",
    ):
        assert not torch.equal(trainer.model.state_dict()[name], before[name]), name


@pytest.mark.parametrize(
    "weights, absent",
    [
        (dict(commitment_weight=0.0), "commitment"),
        (dict(semantic_weight=0.0), "semantic"),
        (dict(noise_weight=0.0), "noise"),
    ],
)
def test_a_term_of_weight_zero_is_not_computed(tmp_path, weights, absent):
    trainer = build_trainer(METHOD, tmp_path, max_steps=1, **weights)
    trainer.train()
    assert absent not in trainer.state.log_history[0]


def test_without_noise_term_the_head_rests(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, noise_weight=0.0)
    assert not any(weights.requires_grad for weights in trainer.model.model.noise_head.parameters())


def test_without_clean_targets_the_clean_half_is_not_needed(tmp_path):
    trainer = build_trainer(
        METHOD, tmp_path, commitment_target="own_codes", semantic_weight=0.0, noise_weight=0.0, max_steps=1
    )
    assert trainer.both_states(first_batch(trainer))[1] is None
    trainer.train()


def test_an_adapter_trains_on_recognition_alone(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, config_fields=dict(bottleneck="adapter", noise_labels=[]))
    before = trainer.model.adapter.blocks[0].contract.weight.clone()
    trainer.train()
    line = trainer.state.log_history[0]
    assert line["loss"] == pytest.approx(line["cross_entropy"], abs=1e-5) and "semantic" not in line
    assert not torch.equal(trainer.model.adapter.blocks[0].contract.weight, before)


def test_the_noise_weight_is_inverse_to_the_validation_accuracy(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, noise_weight=0.1, **FOLLOWING)
    assert trainer.current_noise_weight == pytest.approx(0.1 / (1 / 2))  # chance among two classes
    for accuracy, weight in ((80.0, 0.125), (100.0, 0.1), (10.0, 0.2)):
        trainer.state.log_history.append({"eval_noise_accuracy": accuracy})
        assert trainer.current_noise_weight == pytest.approx(weight)


def test_validation_counts_every_row_once(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, per_device_eval_batch_size=4)
    in_parts = trainer.evaluate()
    trainer.args.per_device_eval_batch_size = 6
    at_once = trainer.evaluate()
    assert at_once == pytest.approx(in_parts, rel=1e-5)
    batch = trainer.data_collator([trainer.eval_dataset[row] for row in range(6)])
    trainer.model.eval()
    outputs = trainer.terms(trainer.model, batch, counts_of(trainer, batch))[1]
    right = outputs.speech.noise_logits.argmax(dim=-1) == batch["noise_labels"]
    assert at_once["eval_noise_accuracy"] == pytest.approx(100 * right.float().mean().item())


def test_validation_does_not_move_the_codebook(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    before = trainer.model.model.quantizer.codebook.clone()
    trainer.evaluate()
    assert torch.equal(trainer.model.model.quantizer.codebook, before)


def test_a_share_of_the_utterances_is_relabelled_unknown_in_training_only(tmp_path):
    trainer = build_trainer(METHOD, tmp_path, unknown_share=0.3)
    seeds = torch.randint(2**32, (4000,), generator=torch.Generator().manual_seed(0))
    inputs = {"seeds": seeds, "noise_labels": torch.zeros(4000, dtype=torch.long)}
    trainer.model.train()
    labels = trainer._relabelled(inputs)["noise_labels"]
    assert set(labels.unique().tolist()) == {0, 2}
    assert (labels == 2).float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(labels, trainer._relabelled(inputs)["noise_labels"])
    trainer.model.eval()
    assert trainer._relabelled(inputs)["noise_labels"].sum() == 0


@pytest.mark.parametrize("downsampling", ["mean", "conv", "conv_transformer"])
@pytest.mark.parametrize("upsampling", ["repeat", "conv"])
def test_a_bottleneck_that_is_fitted_first_uses_its_codes_and_starts_nearer_to_the_clean_states(
    tmp_path, downsampling, upsampling
):
    strategy = dict(downsampling=downsampling, upsampling=upsampling)
    lines = []
    for rows in (0, 12):
        trainer = build_trainer(METHOD, tmp_path, fit_bottleneck_rows=rows, learning_rate=0.0, config_fields=strategy)
        trainer.train()
        lines.append(trainer.state.log_history[0])
    assert lines[1]["codebook_usage"] > lines[0]["codebook_usage"]
    assert lines[1]["semantic"] < lines[0]["semantic"]


def test_a_cosine_bottleneck_is_fitted_to_directions_and_trains(tmp_path):
    cosine = dict(codebook_distance="cosine", downsampling="mean")
    trainer = build_trainer(METHOD, tmp_path, fit_bottleneck_rows=12, config_fields=cosine)
    trainer.train()
    codes = trainer.model.model.quantizer.codebook[:-1]
    assert torch.allclose(codes.norm(dim=-1), torch.ones(len(codes)), atol=1e-5)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert all(line["commitment"] < 4 / codes.shape[1] for line in lines)  # between two directions


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(noise_weight_schedule="inverse_accuracy"), "eval_strategy='no'"),
        (dict(noise_weight_schedule="linear"), "got 'linear'"),
        (dict(commitment_target="codes"), "commitment_target must be one of .* got 'codes'"),
        (dict(unknown_share=1.0), "unknown_share must be at least 0 and below 1; got 1.0"),
        (dict(config_fields=dict(noise_labels=[])), "has no noise head"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        build_trainer(METHOD, tmp_path, **wrong)


@pytest.mark.parametrize("rows", [None, 0])
def test_a_noise_weight_that_follows_an_empty_validation_split_is_refused(tmp_path, rows):
    eval_rows = None if rows is None else pair_corpus(2).select(range(rows))
    with pytest.raises(ValueError, match="there are none|didn't pass an `eval_dataset`"):
        build_trainer(METHOD, tmp_path, eval_rows=eval_rows, **FOLLOWING)


@pytest.mark.parametrize("eval_rows", [None, pair_corpus(1).select([])])
def test_validation_without_rows_is_an_error(tmp_path, eval_rows):
    trainer = build_trainer(METHOD, tmp_path, eval_rows=eval_rows)
    with pytest.raises(ValueError, match="need a validation row each"):
        trainer.evaluate()


def test_validation_without_any_seen_noise_is_an_error(tmp_path):
    trainer = build_trainer(METHOD, tmp_path)
    trainer.eval_dataset = pair_corpus(2).remove_columns("noise").add_column("noise", ["", ""]).with_format("numpy")
    with pytest.raises(ValueError, match="nothing to follow"):
        trainer.evaluate()


def test_the_defaults_are_the_papers(tmp_path):
    args = DisentangledWhisperTrainingArguments(output_dir=str(tmp_path))
    assert (args.learning_rate, args.warmup_steps, args.lr_scheduler_type) == (1e-3, 500, "cosine")
    assert (args.adam_beta1, args.adam_beta2, args.per_device_train_batch_size) == (0.9, 0.95, 32)
    assert (args.asr_weight, args.commitment_weight, args.semantic_weight) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize("downsampling", ["mean", "conv_transformer"])
def test_bfloat16_trains_to_nearly_the_same_loss_with_a_codebook_in_float32(tmp_path, downsampling):
    arguments = dict(clean_is_unknown=True, config_fields=dict(downsampling=downsampling, noise_head_layers=1))
    first_losses = []
    for bf16 in (False, True):
        trainer = build_trainer(METHOD, tmp_path, bf16=bf16, max_steps=2, **arguments)
        trainer.train()
        first_losses.append(trainer.state.log_history[0]["loss"])
        assert trainer.model.model.quantizer.codebook.dtype == torch.float32
    assert first_losses[1] == pytest.approx(first_losses[0], rel=0.02)


def test_activation_checkpointing_changes_no_weight(tmp_path):
    weights = []
    for checkpointing in (False, True):
        trainer = build_trainer(METHOD, tmp_path, activation_checkpointing=checkpointing, max_steps=2, dropout=0.1)
        trainer.train()
        weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert relative_difference(weights[1], weights[0]) < 1e-5


@pytest.fixture
def kept(tmp_path):
    """A trainer on waveforms, and one of the same weights on the kept states of the same pairs."""
    trainer = build_trainer(METHOD, tmp_path / "computed", num_rows=8)
    cached = build_trainer(METHOD, tmp_path / "kept", num_rows=8)
    collator, extractor = cached.data_collator, cached.feature_extractor
    arguments = (cached.model.model, cached.train_dataset, collator, extractor, tmp_path / "states", {"data": "a"})
    cached.train_dataset = cache_encoder_states(*arguments)
    cached.data_collator = EncoderStatesCollator(collator, extractor, cached.model.config.d_model)
    return trainer, cached, arguments


def test_kept_states_train_as_computed_ones_to_their_precision(kept):
    trainer, cached, _ = kept
    trainer.train()
    cached.train()
    for line, expected in zip(cached.state.log_history, trainer.state.log_history):
        if "loss" in line:
            assert line["loss"] == pytest.approx(expected["loss"], rel=1e-3)
            assert line["noise"] == pytest.approx(expected["noise"], rel=1e-2)


def test_kept_states_are_read_and_not_computed_again(kept, monkeypatch):
    _, cached, arguments = kept
    monkeypatch.setattr(type(cached.model.model), "encoder_states", None)
    assert cache_encoder_states(*arguments)[3] == cached.train_dataset[3]


def test_kept_states_of_something_else_are_refused(kept):
    _, _, arguments = kept
    with pytest.raises(ValueError, match="holds the states of"):
        cache_encoder_states(*arguments[:-1], {"data": "b"})


@pytest.mark.parametrize("row", [0, 4, 7])
def test_kept_states_of_audio_that_was_edited_are_refused(kept, row):
    _, _, (model, pairs, *others) = kept
    edited = [dict(each) for each in pairs]
    edited[row]["audio"] = edited[row]["audio"] * 0.9
    edited = Dataset.from_list(edited).with_format("numpy")
    with pytest.raises(ValueError, match="holds the states of"):
        cache_encoder_states(model, edited, *others)


def test_kept_states_of_another_feature_extractor_are_refused(kept):
    _, cached, (model, pairs, collator, extractor, *others) = kept
    extractor = type(extractor)(**{**extractor.to_dict(), "n_fft": 512})
    with pytest.raises(ValueError, match="holds the states of .*'n_fft': 400.*not of .*'n_fft': 512"):
        cache_encoder_states(model, pairs, collator, extractor, *others)


def test_an_adapter_trains_on_kept_states_without_the_clean_ones(kept, tmp_path):
    _, cached, _ = kept
    adapter = build_trainer(METHOD, tmp_path, config_fields=dict(bottleneck="adapter", noise_labels=[]))
    adapter.data_collator = cached.data_collator
    losses = []
    for rows in (cached.train_dataset, cached.train_dataset.remove_columns("clean_states")):
        adapter.train_dataset = rows
        batch = first_batch(adapter)
        losses.append(adapter.terms(adapter.model.eval(), batch, counts_of(adapter, batch))[0]["cross_entropy"][1])
    assert "clean_encoder_states" not in batch
    assert torch.equal(*losses)


def test_a_killed_training_resumes_to_the_same_weights_codebook_and_noise_weight(tmp_path):
    whole, killed = str(tmp_path / "whole"), str(tmp_path / "killed")
    saving = dict(method=METHOD, save_strategy="steps", save_steps=2, max_steps=6, dropout=0.1, num_rows=24)
    saving |= FOLLOWING | dict(config_fields=dict(dead_code_threshold=0.2))
    assert run_apart(output_dir=whole, **saving) == [0]
    assert run_apart(output_dir=killed, killed_after=5, **saving) == [-9]
    assert run_apart(output_dir=killed, resume=True, **saving) == [0]
    (weights, lines), (expected, expected_lines) = read_run(killed), read_run(whole)
    assert relative_difference(weights, expected) == 0.0
    assert [line["noise_weight"] for line in lines] == [line["noise_weight"] for line in expected_lines]
