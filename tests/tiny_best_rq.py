"""Tiny random BEST-RQ models and their trainings of a second, also for processes that the tests start."""

import torch
from tiny_training import ARGUMENTS, KillAfterStep, speech_corpus

from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.modeling.modeling_best_rq import BestRQForPreTraining
from clearspeech.processing.feature_collator import FeatureCollator
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_best_rq import BestRQTrainer, BestRQTrainingArguments

SHAPE = dict(
    num_mel_bins=16,
    conv_channels=(8, 12, 16),
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=32,
    conv_kernel_size=5,
    codebook_size=20,
    codebook_dim=6,
)


def make_best_rq(**fields) -> BestRQForPreTraining:
    """The same random weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return BestRQForPreTraining(BestRQConfig(**SHAPE | fields)).eval()


def build_best_rq_trainer(
    output_dir: str, dropout: float = 0.0, num_rows: int = 12, config_fields: dict | None = None, **arguments
) -> BestRQTrainer:
    """On utterances of 0.1 to 0.7 s. arguments: over those of the tests' other trainings."""
    rates = dict.fromkeys(("dropout", "activation_dropout", "attention_dropout"), dropout)
    # no biases, as a key's has a gradient of mere rounding noise
    model = make_best_rq(**rates, attention_bias=False, **(config_fields or {}))
    speech, extractor = speech_corpus(num_rows), BestRQFeatureExtractor(num_mel_bins=16)
    plain = dict(gradient_accumulation_steps=1, output_dir=str(output_dir))
    return BestRQTrainer(
        model=model,
        args=BestRQTrainingArguments(**ARGUMENTS | plain | arguments),
        train_dataset=speech,
        eval_dataset=speech.select(range(5)),
        data_collator=FeatureCollator(extractor),
        processing_class=extractor,
    )


def pretrain(output_dir: str, resume: bool = False, killed_after: int | None = None, **arguments):
    """Train, save and leave the log, as the recipe does."""
    checkpoint = prepare_output_folder(output_dir, resume)
    trainer = build_best_rq_trainer(output_dir, **arguments)
    if killed_after is not None:
        trainer.add_callback(KillAfterStep(killed_after))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
