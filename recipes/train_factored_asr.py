"""
Train FactoredASR: a speech encoder's frames split into content and context, and a transducer that reads the content.

The paper's Conformer run (its section 2.4; here on eight 80 GB GPUs: 8 x 16 utterances, 16 steps accumulated, are its
"batch size of 2048"):

    accelerate launch --multi_gpu --num_processes 8 recipes/train_factored_asr.py --bf16 \\
        --encoder conformer --dataset openslr/librispeech_asr:all --output_dir outputs/factored_asr

Its RNN-T run has `--encoder lstm`. Any encoder of Transformers that gives frames is trained on in the same way, here
wav2vec 2.0 (or HuBERT, WavLM, Whisper's or Parakeet's encoder):

    accelerate launch recipes/train_factored_asr.py --encoder facebook/wav2vec2-base \\
        --dataset openslr/librispeech_asr:all --num_train_epochs 20 --output_dir outputs/factored_wav2vec2

FR, BG-C and MLM, the columns of Table 1, are `--factorize False --mi_weight 0`, `--contrast_weight 0` and
`--mask_probability 0` when they are left out; all three left out is the baseline. On one CPU core (about 10 minutes):

    accelerate launch --cpu recipes/train_factored_asr.py --preset mini --encoder lstm --dataset embedded \\
        --output_dir outputs/mini_factored
"""

from argparse import Namespace
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from presets import given, parse_with_preset
from training_speech import ResumableArguments, ValidatedSpeechArguments, statistics_rows
from transformers import AutoConfig, AutoFeatureExtractor, set_seed

from clearspeech.configuration.configuration_factored_asr import (
    ConformerEncoderConfig,
    FactoredASRConfig,
    LSTMEncoderConfig,
)
from clearspeech.modeling.frame_encoders import FrameEncoder
from clearspeech.modeling.modeling_factored_asr import FactoredASRForRNNT
from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.feature_text_collator import FeatureTextCollator
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.processing.subword_tokenizer import train_subword_tokenizer
from clearspeech.processing.text_encoding import encode_known, normalize_transcript
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_factored_asr import FactoredASRTrainer, FactoredASRTrainingArguments

PRESETS = {
    "paper": dict(
        num_train_epochs=65,  # "for 65 epochs"
        per_device_train_batch_size=16,
        gradient_accumulation_steps=16,
        dataloader_num_workers=8,  # features of 256 utterances a step on each process
        lr_scheduler_type="constant",
        eval_strategy="epoch",
        save_strategy="epoch",
    ),
    "mini": dict(
        vocab_size=64,
        max_seconds=8.0,
        max_validation_rows=320,
        decoder_hidden_size=192,
        num_decoder_layers=1,
        factor_dim=128,
        num_factor_layers=1,
        factor_dropout=0.0,
        ctc_weight=0.5,
        spec_augment=False,  # a training this short does not get through it: losses stay at those of guessing
        max_steps=6000,
        warmup_steps=0.1,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=1500,
        logging_steps=50,
        save_steps=1500,
        save_total_limit=1,
        use_cpu=True,
    ),
}
MINI_ENCODERS = {  # what the mini preset also sets, by encoder
    "lstm": dict(stack=6, encoder_hidden_size=256, num_encoder_layers=2, learning_rate=1.5e-3),
    "conformer": dict(stack=6, encoder_hidden_size=144, num_encoder_layers=4, learning_rate=1e-3),
}
OWN_ENCODERS = {"lstm": LSTMEncoderConfig, "conformer": ConformerEncoderConfig}


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    encoder: str = field(
        metadata={"help": "conformer or lstm, from random weights; or folder or Hub id of a pretrained encoder."}
    )
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    vocab_size: int = field(default=640, metadata={"help": '"a sentence-piece model with a vocab size of 640"'})
    factorize: bool = field(
        default=True,
        metadata={"help": "FR: factors; False leaves the encoder's states whole, normalized frame by frame."},
    )
    normalization: str | None = field(
        default=None,
        metadata={
            "help": "Of the filter-bank energies of conformer and lstm; global when not given.",
            "choices": ["utterance", "global", "none"],
        },
    )
    stack: int | None = field(
        default=None,
        metadata={"help": "Frames of 10 ms that make one of conformer and lstm; the paper's 3 when not given."},
    )
    encoder_hidden_size: int | None = field(
        default=None, metadata={"help": "Of conformer and lstm; the paper's 512 and 1024 when not given."}
    )
    num_encoder_layers: int | None = field(
        default=None, metadata={"help": "Of conformer and lstm; the paper's 17 and 6 when not given."}
    )
    decoder_hidden_size: int | None = field(
        default=None, metadata={"help": "Of the prediction network; the paper's 1024 when not given."}
    )
    num_decoder_layers: int | None = field(
        default=None, metadata={"help": "Of the prediction network; the paper's 2 when not given."}
    )
    factor_dim: int | None = field(
        default=None, metadata={"help": "F, and the width of all networks of factors; the paper's 512 when not given."}
    )
    num_factor_layers: int | None = field(
        default=None, metadata={"help": "Hidden layers of each network of factors; the paper's 3 when not given."}
    )
    dropout: float | None = field(
        default=None,
        metadata={"help": "Of the factor networks and of conformer and lstm; 0.1, the paper's, when not given."},
    )
    factor_dropout: float | None = field(
        default=None, metadata={"help": "Of the factor networks alone; as --dropout when not given."}
    )

    def __post_init__(self):
        of_own = ("normalization", "stack", "encoder_hidden_size", "num_encoder_layers")
        given = [f"--{name}" for name in of_own if self.__dict__[name] is not None]
        if self.encoder not in OWN_ENCODERS and given:
            raise ValueError(
                f"{', '.join(given)} belong to --encoder {' or '.join(OWN_ENCODERS)}; {self.encoder} comes with its "
                "own. Leave them out."
            )


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, FactoredASRTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, FactoredASRTrainingArguments), PRESETS, arguments, mini_sizes)


def mini_sizes(known: Namespace) -> dict:
    """Of --encoder, in the mini."""
    return MINI_ENCODERS.get(known.encoder, {}) if known.preset == "mini" else {}


def build_feature_extractor(recipe: RecipeArguments, train: Dataset):
    """That of a pretrained encoder; our own for our own encoders, with the training corpora's mean and deviation."""
    if recipe.encoder in OWN_ENCODERS:
        extractor = FactoredASRFeatureExtractor(
            **given(normalization=recipe.normalization or "global", stack=recipe.stack)
        )
        if extractor.normalization == "global":
            extractor.fit(row["audio"] for row in statistics_rows(train))
        return extractor
    if AutoConfig.from_pretrained(recipe.encoder).model_type == "whisper":
        return StableTokenFeatureExtractor.from_pretrained(recipe.encoder, mel_frames_per_token=2)
    return AutoFeatureExtractor.from_pretrained(recipe.encoder, return_attention_mask=True)


def build_processor(
    recipe: RecipeArguments, args: FactoredASRTrainingArguments, train: Dataset, is_resumed: bool
) -> FactoredASRProcessor:
    """Made by the first process, from the training corpora, and saved; the others, and a resumed run, read it."""
    with args.main_process_first(local=False, desc="subwords and statistics"):
        if args.process_index == 0 and not is_resumed:
            tokenizer = train_subword_tokenizer(train.select_columns("text")["text"], recipe.vocab_size)
            FactoredASRProcessor(build_feature_extractor(recipe, train), tokenizer).save_pretrained(args.output_dir)
        return FactoredASRProcessor.from_pretrained(args.output_dir)


def check_transcripts(processor: FactoredASRProcessor, speech: dict[str, Dataset]) -> None:
    """Raise ValueError, before the first step, for a transcript that training or validation would stop at."""
    for split, rows in speech.items():
        for number, text in enumerate(rows.select_columns("text")["text"]):
            try:
                encode_known(processor.tokenizer, normalize_transcript(text))
            except ValueError as error:
                raise ValueError(f"{split}, row {number}: {error}") from error


def build_model(recipe: RecipeArguments, processor: FactoredASRProcessor) -> FactoredASRForRNNT:
    """A model of the asked sizes, on a pretrained or a new encoder."""
    num_pieces = len(processor.tokenizer)
    fields = given(
        decoder_hidden_size=recipe.decoder_hidden_size,
        num_decoder_layers=recipe.num_decoder_layers,
        factor_dim=recipe.factor_dim,
        factor_hidden_size=recipe.factor_dim,
        num_factor_layers=recipe.num_factor_layers,
        factorize=recipe.factorize,
        dropout=recipe.dropout if recipe.factor_dropout is None else recipe.factor_dropout,
        vocab_size=num_pieces + 1,
        blank_token_id=num_pieces,
        pad_token_id=processor.tokenizer.pad_token_id,
    )
    if recipe.encoder not in OWN_ENCODERS:
        return FactoredASRForRNNT.from_encoder(recipe.encoder, **fields)
    shape = given(
        input_size=processor.feature_extractor.feature_size,
        hidden_size=recipe.encoder_hidden_size,
        num_hidden_layers=recipe.num_encoder_layers,
        dropout=recipe.dropout,
    )
    if recipe.encoder == "conformer":
        shape |= given(activation_dropout=recipe.dropout, attention_dropout=recipe.dropout)
        if recipe.encoder_hidden_size is not None:
            shape["intermediate_size"] = 4 * recipe.encoder_hidden_size  # as Gulati et al.
    return FactoredASRForRNNT(FactoredASRConfig(encoder_config=OWN_ENCODERS[recipe.encoder](**shape), **fields))


def build_collator(processor: FactoredASRProcessor, model: FactoredASRForRNNT) -> FeatureTextCollator:
    """With what counts the encoder's frames, on its own, as workers of the data loader get a copy of it."""
    with torch.device("meta"):  # without weights
        counter = FrameEncoder(model.config.encoder_config)
    return FeatureTextCollator(
        processor.feature_extractor, processor.tokenizer, model.config.max_symbols_per_step, counter.count_states
    )


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    speech = {split: recipe.load(split) for split in ("train", "validation")}
    processor = build_processor(recipe, args, speech["train"], is_resumed=checkpoint is not None)
    check_transcripts(processor, speech)
    model = build_model(recipe, processor)
    trainer = FactoredASRTrainer(
        model=model,
        args=args,
        train_dataset=speech["train"],
        eval_dataset=speech["validation"],
        data_collator=build_collator(processor, model),
        processing_class=processor,  # into every checkpoint
        feature_extractor=processor.feature_extractor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
