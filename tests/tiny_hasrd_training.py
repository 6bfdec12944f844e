"""Trainings of a second of HASRD's codec, for the tests' own process and for processes that they start."""

from pathlib import Path

import torch
from tiny_hasrd import make_hasrd
from tiny_training import ARGUMENTS, KillAfterStep, speech_corpus
from transformers import Wav2Vec2FeatureExtractor

from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.segment_collator import SegmentCollator
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_hasrd import HasrdTrainer, HasrdTrainingArguments

TINY = dict(
    mel_windows=[64, 256],
    mel_bins=[10, 20],
    discriminator_periods=[2, 3],
    discriminator_fft_sizes=[128],
    discriminator_channel_factor=1 / 32,
    warmup_steps=0,
)


def build(
    output_dir, num_rows=12, encoder="best_rq", config_fields=None, segment_samples=2048, collator=None, **arguments
) -> HasrdTrainer:
    """A trainer with the same random weights each time, on segments of an eighth of a second."""
    model = make_hasrd(encoder, **(config_fields or {}))
    reads_waveforms = model.config.reads_waveforms
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True) if reads_waveforms else BestRQFeatureExtractor(8)
    speech = speech_corpus(num_rows)
    return HasrdTrainer(
        model=model,
        args=HasrdTrainingArguments(**{**ARGUMENTS, **TINY, "output_dir": str(output_dir), **arguments}),
        train_dataset=speech,
        eval_dataset=speech.select(range(5)),
        data_collator=collator or collator_of(model, extractor, segment_samples),
        processing_class=extractor,
    )


def collator_of(model, extractor, segment_samples=2048, source_samples=None) -> SegmentCollator:
    config = model.config
    return SegmentCollator(
        extractor, config.samples_per_token, config.inputs_per_token, segment_samples, source_samples
    )


def run(output_dir, resume=False, killed_after=None, **arguments):
    """Train, save and leave the log and the discriminators, as a recipe does."""
    checkpoint = prepare_output_folder(output_dir, resume)
    trainer = build(output_dir, **arguments)
    if killed_after is not None:
        trainer.add_callback(KillAfterStep(killed_after))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.args.should_save:
        torch.save(trainer.discriminators.network.state_dict(), Path(output_dir, "discriminators.pt"))
