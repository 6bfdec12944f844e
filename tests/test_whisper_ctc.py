"""Questions to the joint CTC Whisper: a plain Whisper comes out, padding is exact, hidden text, alignment."""

import pytest
import torch
from tiny_training import SHAPE, build_trainer
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import sinusoids

from clearspeech import StableTokenForConditionalGeneration
from clearspeech.modeling.modeling_whisper_ctc import WhisperForJointCTC
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor


@pytest.fixture
def model() -> WhisperForJointCTC:
    return WhisperForJointCTC(WhisperConfig(**SHAPE, init_std=0.3)).eval()


@pytest.fixture
def features(make_speech):
    """Two utterances of 1.5 and 0.7 s in one batch."""
    extractor = StableTokenFeatureExtractor(feature_size=16)
    return extractor([make_speech(24000), make_speech(11000, seed=1)], sampling_rate=16000, return_tensors="pt")


def test_the_saved_base_is_a_plain_whisper_with_the_same_weights(model, tmp_path):
    model.save_whisper(str(tmp_path))
    whisper, report = WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys"))
    ours = model.state_dict()
    for name, value in whisper.state_dict().items():
        assert torch.equal(ours[name], value), name
    assert torch.equal(whisper.model.encoder.embed_positions.weight, sinusoids(100, 32))


def test_a_stable_token_starts_from_the_saved_base(model, features, tmp_path):
    model.save_whisper(str(tmp_path))
    stable = StableTokenForConditionalGeneration.from_whisper(str(tmp_path), num_bits=4)
    assert stable.model.encode(**features).audio_codes.shape == (2, 38)


def test_both_outputs_of_an_utterance_do_not_depend_on_its_batch(model, features):
    labels = torch.tensor([[5, 6, 7, 0], [8, 9, 0, -100]])
    with torch.no_grad():
        batch = model(**features, labels=labels)
        alone = model(features.input_features[1:, :, :69], features.attention_mask[1:, :69], labels=labels[1:, :3])
    num_frames = int(alone.frame_mask.sum())
    assert num_frames == int(batch.frame_mask[1].sum()) == 18
    torch.testing.assert_close(batch.ctc_logits[1, :num_frames], alone.ctc_logits[0], atol=2e-4, rtol=0)
    torch.testing.assert_close(batch.logits[1, :3], alone.logits[0], atol=2e-4, rtol=0)


def test_transcripts_do_not_depend_on_the_batch(model, features):
    batch = model.generate(**features, max_new_tokens=6)
    alone = model.generate(features.input_features[1:, :, :69], features.attention_mask[1:, :69], max_new_tokens=6)
    assert torch.equal(batch[1, : alone.shape[1]], alone[0])


def test_augmentation_changes_from_step_to_step_and_repeats_with_the_step(tmp_path):
    augmentation = dict(speed_factors=[0.9, 1.1], num_masks=2, mask_time=10, mask_mel=4, augmentation_start=1)
    trainer = build_trainer("whisper_ctc", tmp_path, **augmentation)
    batch = trainer.data_collator([trainer.train_dataset[row] for row in range(3)])
    counts = {"labels": batch["labels"].ne(-100).sum(), "frames": torch.tensor(1)}
    trainer.model.eval()

    def loss(step: int) -> float:
        trainer.state.global_step = step
        return float(trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).detach())

    assert loss(7) == loss(7) != loss(8)
    features, mask = trainer.feature_extractor.extract(batch["waveforms"], batch["num_samples"])
    trainer.state.global_step = 0  # before `augmentation_start`
    assert torch.equal(trainer._augmented_features(batch["waveforms"], batch["num_samples"])[0], features)
