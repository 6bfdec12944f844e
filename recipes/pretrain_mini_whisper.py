"""
Train a Whisper of 3.5 M parameters from scratch: the base that the mini models start from.

The base kept in `hub_cards/mini/whisper` was trained in four stages, DATA being the folder of the real corpora:

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/pretrain_mini_whisper.py --use_cpu --bf16 \\
        --dataset embedded digit_strings:DATA/spoken_digits:1200 DATA/an4 DATA/an4 DATA/alphanumeric@verbalised \\
        DATA/grid_s1 --train_sampling_strategy group_by_length --per_device_train_batch_size 12 --max_steps 4500 \\
        --learning_rate 1e-3 --lr_scheduler_type cosine --warmup_steps 200 --adam_beta2 0.98 --weight_decay 0.01 \\
        --mask_text 0 --save_steps 250 --output_dir outputs/whisper_1

    and on from the last checkpoint of the stage before, each with --init_from outputs/whisper_1/checkpoint-4500 (and
    so on), --augmentation_start 0, --mask_text 0.2, without grid_s1, with an4 four times, and

    2: --max_steps 2000 --learning_rate 7e-4 --warmup_steps 100, 4000 digit strings, alphanumeric three times
    3: --max_steps 750 --learning_rate 5e-4 --warmup_steps 50, 8000 digit strings, alphanumeric twice,
       --mask_time 8 --mask_mel 10 --num_masks 1
    4: --max_steps 300 --learning_rate 3e-4 --warmup_steps 20, 12000 digit strings, else as 3

Cross-entropy alone does not align from so little speech; an auxiliary CTC loss on the encoder does. The decoder then
recites the few texts it has seen, until a share of its inputs is hidden, the digit strings are many, and masks are too
short to hide a whole digit. WER on digit strings and an4 after each stage: 13.8 and 44.1 %, 8.9 and 32.2 %,
5.5 and 29.2 %, 4.9 and 30.5 % (the last with the kept float16 weights). Hardware: two CPU cores, 70 minutes in all.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from presets import OF_TRAINING
from training_speech import ResumableArguments, SpeechArguments
from transformers import HfArgumentParser, WhisperConfig, set_seed

from clearspeech.modeling.modeling_whisper_ctc import WhisperForJointCTC
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.collators import SpeechTextCollator
from clearspeech.processing.corpora import leave_out_long, load_corpora, load_corpus
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_stable_token import StableTokenProcessor
from clearspeech.processing.text_normalization import normalize_text
from clearspeech.trainers.evaluation import transcribe
from clearspeech.trainers.metrics import CharacterErrorRate, WordErrorRate
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_whisper_ctc import WhisperCTCTrainer, WhisperCTCTrainingArguments

SHAPE = dict(
    num_mel_bins=80,
    d_model=192,
    encoder_layers=4,
    encoder_attention_heads=4,
    encoder_ffn_dim=768,
    decoder_layers=2,
    decoder_attention_heads=4,
    decoder_ffn_dim=768,
    max_target_positions=256,
    dropout=0.1,
)


@dataclass
class RecipeArguments(SpeechArguments, ResumableArguments):
    evaluation_dataset: list[str] = field(default_factory=list, metadata={"help": "Corpora for the test WER."})
    init_from: str | None = field(
        default=None, metadata={"help": "Checkpoint of this recipe whose weights to start from."}
    )
    max_seconds: float = field(default=12.0, metadata={"help": "Longer training utterances are left out."})


def build_model(tokenizer) -> WhisperForJointCTC:
    """A random Whisper over the characters of `tokenizer`."""
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        begin_suppress_tokens=None,
        **SHAPE,
    )
    model = WhisperForJointCTC(config)
    for convolution in (model.model.encoder.conv1, model.model.encoder.conv2):
        # Whisper's initialization leaves speech 20 times weaker than the positions added to it: CTC then stalls
        torch.nn.init.kaiming_normal_(convolution.weight)
    return model


def main():
    parser = HfArgumentParser((RecipeArguments, WhisperCTCTrainingArguments))
    parser.set_defaults(**OF_TRAINING)
    recipe, args = parser.parse_args_into_dataclasses()
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    tokenizer = build_character_tokenizer()
    feature_extractor = StableTokenFeatureExtractor(feature_size=SHAPE["num_mel_bins"])
    model = WhisperForJointCTC.from_pretrained(recipe.init_from) if recipe.init_from else build_model(tokenizer)
    speech = load_corpora(recipe.dataset, "train", on_error=recipe.on_error, decoded=True)
    train = leave_out_long(speech, recipe.max_seconds)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(train)} of {len(speech)} utterances")

    trainer = WhisperCTCTrainer(
        model=model,
        args=args,
        train_dataset=train,
        data_collator=SpeechTextCollator(tokenizer, model.config.decoder_start_token_id),
        feature_extractor=feature_extractor,
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.is_world_process_zero():
        model.save_whisper(args.output_dir)
        StableTokenProcessor(feature_extractor, tokenizer).save_pretrained(args.output_dir)
        evaluate(model, feature_extractor, tokenizer, recipe.evaluation_dataset, args.output_dir)


def evaluate(model, feature_extractor, tokenizer, corpora: list[str], output_dir: str):
    """Print and store WER and CER of each corpus's test split."""
    results = {}
    for corpus in corpora:
        test = load_corpus(corpus, "test", decoded=True)
        hypotheses = transcribe(model, feature_extractor, tokenizer, list(test["audio"]))
        texts = dict(predictions=hypotheses, references=[normalize_text(text) for text in test["text"]])
        results[corpus] = {**WordErrorRate().compute(**texts), **CharacterErrorRate().compute(**texts)}
        print(corpus, results[corpus])
    Path(output_dir, "evaluation.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
