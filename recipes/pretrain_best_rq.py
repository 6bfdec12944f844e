"""
Pre-train BEST-RQ, the encoder of HASRD: it predicts which code of a random projection each masked frame has.

The paper's encoder (its sections 2.1 and 3) on "the full LibriSpeech dataset", "600 seconds per GPU across 8 A40 GPUs"
of 48 GB and "gradient accumulation of 2", 2.7 hours of speech in a step; the number of steps, which it does not say,
is that of its reference [29], SpeechBrain's BEST-RQ:

    accelerate launch --multi_gpu --num_processes 8 recipes/pretrain_best_rq.py --bf16 \\
        --dataset openslr/librispeech_asr:all --output_dir outputs/best_rq

Table 3's other normalization is `--normalization global`; the wider encoder of HASRD (BestRQ+) `--hidden_size 768`.
Any speech will do, with transcripts or without, in any of the forms of processing/corpora.py. On two CPU cores
(about 25 minutes):

    accelerate launch --cpu recipes/pretrain_best_rq.py --preset mini --dataset embedded \\
        --output_dir outputs/mini_best_rq

The loss is read beside `target_entropy`, the entropy of the labels: a model that looks at no context gets no lower.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from presets import parse_with_preset
from training_speech import ResumableArguments, ValidatedSpeechArguments, statistics_rows
from transformers import set_seed

from clearspeech.configuration.configuration_best_rq import BestRQConfig
from clearspeech.modeling.modeling_best_rq import BestRQForPreTraining
from clearspeech.processing.feature_collator import FeatureCollator
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor
from clearspeech.processing.untranscribed_corpora import load_untranscribed
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_best_rq import BestRQTrainer, BestRQTrainingArguments

PRESETS = {
    "paper": dict(
        max_steps=300_000,
        per_device_train_batch_size=50,  # "a batch duration of 600 seconds per GPU", of utterances of 12 s
        dataloader_num_workers=8,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=5000,
        logging_steps=500,
        save_steps=5000,
        save_total_limit=4,
    ),
    "mini": dict(
        hidden_size=144,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=288,
        conv_channels=[64, 96, 128],
        codebook_size=1024,
        max_seconds=6.0,
        max_validation_rows=320,
        max_steps=3000,
        learning_rate=1e-3,
        warmup_steps=300,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=16,
        gradient_accumulation_steps=1,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=500,
        logging_steps=25,
        save_steps=500,
        save_total_limit=1,
        use_cpu=True,
    ),
}


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    validation_dataset: list[str] | None = field(
        default=None, metadata={"help": "Corpora with a validation split; those of --dataset when not given."}
    )
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    normalization: str = field(
        default="sentence",
        metadata={"help": "Of the features, over each utterance or the corpus.", "choices": ["sentence", "global"]},
    )
    hidden_size: int = field(default=516, metadata={"help": "Of the Conformer; 768 in HASRD (BestRQ+)."})
    num_hidden_layers: int = field(default=12, metadata={"help": '"12 layers instead of 24"'})
    num_attention_heads: int = field(default=12, metadata={"help": '"the number of attention heads from 8 to 12"'})
    intermediate_size: int = field(default=1024, metadata={"help": '"the feedforward dimension from 2048 to 1024"'})
    conv_channels: list[int] = field(
        default_factory=lambda: [256, 512, 1024], metadata={"help": "Of the front-end; the last is the paper's 1024."}
    )
    separable: bool = field(default=True, metadata={"help": "1D-CNN+SepConv; False is the plain 1D-CNN."})
    codebook_size: int = field(default=8192, metadata={"help": "Codes of the random projection quantizer."})
    mask_probability: float = field(default=0.15, metadata={"help": "Masked spans of 4 frames for each frame."})


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, BestRQTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, BestRQTrainingArguments), PRESETS, arguments)


def load_split(recipe: RecipeArguments, split: str) -> Dataset:
    """All corpora in a split, utterances of at most `max_seconds`."""
    corpora = recipe.dataset
    if split == "validation" and recipe.validation_dataset is not None:
        corpora = recipe.validation_dataset
    return recipe.limit(load_untranscribed(corpora, split, on_error=recipe.on_error), split)


def build_feature_extractor(
    recipe: RecipeArguments, args: BestRQTrainingArguments, train: Dataset, is_resumed: bool
) -> BestRQFeatureExtractor:
    """Made by the first process, from the training corpora, and saved; the others, and a resumed run, read it."""
    with args.main_process_first(local=False, desc="statistics"):
        if args.process_index == 0 and not is_resumed:
            extractor = BestRQFeatureExtractor(normalization=recipe.normalization)
            if extractor.normalization == "global":
                extractor.fit(row["audio"] for row in statistics_rows(train))
            extractor.save_pretrained(args.output_dir)
        return BestRQFeatureExtractor.from_pretrained(args.output_dir)


def build_model(recipe: RecipeArguments) -> BestRQForPreTraining:
    """A model of random weights."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "conv_channels")
    names += ("separable", "codebook_size", "mask_probability")
    return BestRQForPreTraining(BestRQConfig(**{name: recipe.__dict__[name] for name in names}))


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    speech = {split: load_split(recipe, split) for split in ("train", "validation")}
    extractor = build_feature_extractor(recipe, args, speech["train"], is_resumed=checkpoint is not None)
    trainer = BestRQTrainer(
        model=build_model(recipe),
        args=args,
        train_dataset=speech["train"],
        eval_dataset=speech["validation"],
        data_collator=FeatureCollator(extractor),
        processing_class=extractor,  # into every checkpoint
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
