"""
Train HASRD: quantizers and decoder of a speech codec on a frozen speech encoder, against discriminators.

The paper's HASRD (BestRQ+), after `recipes/pretrain_best_rq.py` and `recipes/fit_semantic_codebook.py` (its section 3:
"100K iterations", batches of eight segments of 5 s; one 48 GB GPU):

    accelerate launch recipes/train_hasrd.py --bf16 --model outputs/hasrd_fitted \\
        --dataset openslr/librispeech_asr:all --output_dir outputs/hasrd

On several GPUs divide the batch: `--multi_gpu --num_processes 4` and `--per_device_train_batch_size 2`. The codecs of
Table 1, whose front-end is trained along and which have residual books alone, here "DAC+fbank+SepConv" ("trained
on the 100h train-clean-100 subset for 30K iterations"):

    accelerate launch recipes/train_hasrd.py --bf16 --encoder fbank_sepconv --max_steps 30000 \\
        --dataset ../librispeech/train-clean-100 --output_dir outputs/codec_sepconv

The Hub's `openslr/librispeech_asr:clean` has train-clean-360 as well. On two CPU cores (about an hour; sizes of the
encoder and decoder are those of the folder):

    accelerate launch --cpu recipes/train_hasrd.py --preset mini --model outputs/mini_hasrd_fitted \\
        --dataset ../shared/data/an4 --output_dir outputs/mini_hasrd
"""

from argparse import Namespace
from dataclasses import dataclass, field

from datasets import Dataset
from presets import given, parse_with_preset
from training_speech import ResumableArguments, ValidatedSpeechArguments, statistics_rows
from transformers import AutoConfig, AutoFeatureExtractor, FeatureExtractionMixin, set_seed

from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.configuration.configuration_hasrd import HasrdConfig
from clearspeech.modeling.modeling_hasrd import HasrdModel
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.loudness import bring_to_level
from clearspeech.processing.segment_collator import SegmentCollator
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_hasrd import HasrdTrainer, HasrdTrainingArguments

PRESETS = {
    "paper": dict(
        dataloader_num_workers=8,
        eval_strategy="steps",
        eval_steps=5000,
        logging_steps=100,
        save_steps=5000,
        save_total_limit=2,
        max_validation_rows=500,
    ),
    "mini": dict(
        segment_seconds=0.512,
        source_seconds=3.072,
        max_seconds=10.0,
        max_validation_rows=32,
        max_steps=3000,
        learning_rate=5e-4,
        learning_rate_decay=0.9997,
        discriminator_periods=[2, 3, 5, 7, 11],
        discriminator_fft_sizes=[512],
        discriminator_channel_factor=1 / 16,
        eval_strategy="steps",
        eval_steps=500,
        logging_steps=50,
        save_steps=500,
        save_total_limit=1,
        use_cpu=True,
    ),
}
MINI_CODEC = dict(hidden_size=128, conv_channels=[64, 96, 128], decoder_channels=256, codebook_size=256)
BARE_ENCODERS = {"fbank": False, "fbank_sepconv": True}  # by name, whether residual units are depthwise separable


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    model: str | None = field(
        default=None, metadata={"help": "Folder of recipes/fit_semantic_codebook.py: a HASRD, its decoder untrained."}
    )
    encoder: str | None = field(
        default=None,
        metadata={
            "help": f"A codec of Table 1, from random weights: {' or '.join(BARE_ENCODERS)}. A pretrained encoder "
            "goes through recipes/fit_semantic_codebook.py --encoder, and what that leaves is --model."
        },
    )
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    segment_seconds: float = field(default=5.0, metadata={"help": '"random 5-second segments"'})
    source_seconds: float | None = field(
        default=None,
        metadata={"help": "How much the encoder hears, the segment in its middle; the segment alone when not given."},
    )
    quantizer_dropout: float | None = field(
        default=None,
        metadata={"help": "Share of segments whose acoustic books end early; the model's when not given."},
    )
    hidden_size: int | None = field(
        default=None, metadata={"help": "Of --encoder's states; Table 1's 1024 when not given."}
    )
    conv_channels: list[int] | None = field(
        default=None, metadata={"help": "Of --encoder; the paper's 256 512 1024 when not given."}
    )
    decoder_channels: int | None = field(default=None, metadata={"help": "With --encoder; 1536 when not given."})
    num_acoustic_books: int | None = field(default=None, metadata={"help": "With --encoder; 9 when not given."})
    codebook_size: int | None = field(default=None, metadata={"help": "With --encoder; 1024 when not given."})
    max_seconds: float = field(default=40.0, metadata={"help": "Longer utterances are left out."})

    def __post_init__(self):
        if (self.model is None) == (self.encoder is None):
            raise ValueError(f"Give either --model or --encoder; got {self.model!r} and {self.encoder!r}.")
        if self.encoder not in (None, *BARE_ENCODERS):
            raise ValueError(
                f"--encoder is {' or '.join(BARE_ENCODERS)}, from random weights; got {self.encoder!r}. Give a "
                "pretrained encoder to recipes/fit_semantic_codebook.py --encoder, and what that leaves to --model."
            )
        sizes = [f"--{name}" for name in (*MINI_CODEC, "num_acoustic_books") if self.__dict__[name] is not None]
        if self.model is not None and sizes:
            raise ValueError(f"{', '.join(sizes)} belong to --encoder; {self.model} has its own. Leave them out.")


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, HasrdTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, HasrdTrainingArguments), PRESETS, arguments, encoder_defaults)


def encoder_defaults(known: Namespace) -> dict:
    """What follows from --encoder: it is trained along, and small in the mini."""
    if known.encoder is None:
        return {}
    return dict(freeze_encoder=False) | (MINI_CODEC if known.preset == "mini" else {})


def build_feature_extractor(
    recipe: RecipeArguments, args: HasrdTrainingArguments, train: Dataset, is_resumed: bool
) -> FeatureExtractionMixin:
    """
    That of the model's folder. Features of Table 1's codecs have the corpora's mean and deviation: per sentence, the
    mean spectrum would be lost. The first process measures and saves them, at the level of `SegmentCollator`; the
    others, and a resumed run, read them.
    """
    if recipe.model is not None:
        return AutoFeatureExtractor.from_pretrained(recipe.model)
    with args.main_process_first(local=False, desc="statistics"):
        if args.process_index == 0 and not is_resumed:
            extractor = BestRQFeatureExtractor(normalization="global")
            extractor.fit(bring_to_level(row["audio"]).numpy() for row in statistics_rows(train))
            extractor.save_pretrained(args.output_dir)
        return BestRQFeatureExtractor.from_pretrained(args.output_dir)


def build_model(recipe: RecipeArguments) -> HasrdModel:
    """The folder's, whose semantic book is there; or one of Table 1 from random weights."""
    if recipe.model is not None:
        check_model_type(recipe.model)
        model = HasrdModel.from_pretrained(recipe.model)
        if model.config.num_semantic_codes and not model.has_fitted_codebook:
            raise ValueError(f"{recipe.model} has no semantic book yet: run recipes/fit_semantic_codebook.py on it.")
    else:
        fields = dict(separable=BARE_ENCODERS[recipe.encoder])
        sizes = {"hidden_size": 1024} | given(hidden_size=recipe.hidden_size, conv_channels=recipe.conv_channels)
        front_end = BestRQConfig(num_hidden_layers=0, num_attention_heads=1, **sizes, **fields)
        names = ("decoder_channels", "num_acoustic_books", "codebook_size")
        fields |= given(**{name: recipe.__dict__[name] for name in names})
        model = HasrdModel(HasrdConfig(encoder_config=front_end, num_semantic_codes=0, **fields))
    if recipe.quantizer_dropout is not None:
        model.config.quantizer_dropout = recipe.quantizer_dropout
        model.config.validate()
    return model


def check_model_type(folder: str, recipe: str = "recipes/fit_semantic_codebook.py") -> None:
    """Raise ValueError for a folder of another model. recipe: one that leaves the right kind."""
    model_type = AutoConfig.from_pretrained(folder).model_type
    if model_type != "hasrd":
        raise ValueError(f"{folder} holds a {model_type!r} model; give a folder of {recipe}.")


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    model = build_model(recipe)
    speech = {split: recipe.load(split) for split in ("train", "validation")}
    extractor = build_feature_extractor(recipe, args, speech["train"], is_resumed=checkpoint is not None)
    config = model.config
    collator = SegmentCollator(
        extractor,
        config.samples_per_token,
        config.inputs_per_token,
        round(recipe.segment_seconds * config.sampling_rate),
        None if recipe.source_seconds is None else round(recipe.source_seconds * config.sampling_rate),
        seed=args.seed,
    )
    trainer = HasrdTrainer(
        model=model,
        args=args,
        train_dataset=speech["train"],
        eval_dataset=speech["validation"],
        data_collator=collator,
        processing_class=extractor,  # into every checkpoint
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
