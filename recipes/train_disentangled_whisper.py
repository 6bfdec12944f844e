"""
Train DisentangledWhisper: a vector quantizer inside a frozen Whisper; codes are speech, residue is noise.

The paper's run (its section III; two 40 GB GPUs):

    accelerate launch --multi_gpu --num_processes 2 recipes/train_disentangled_whisper.py --bf16 \\
        --base_model openai/whisper-medium --language en --dataset voicebank_demand:DS_10283_2791 \\
        --output_dir outputs/disentangled_whisper

DS_10283_2791 is VoiceBank-DEMAND as distributed, with both training sets; the smaller one is also on the Hub,
`JacobLinCool/VoiceBank-DEMAND-16k:FOLDER`, where FOLDER has the text and log files, which the Hub's copy lacks.

The same on two CPU cores, from the base in `hub_cards/mini/whisper` (about 20 minutes), on clean speech and labelled
noise that are mixed to pairs:

    accelerate launch --cpu recipes/train_disentangled_whisper.py --preset mini --dataset embedded \\
        --noise_dataset embedded --output_dir outputs/mini_disentangled

Rows with `clean_audio` are pairs as they are. Whisper is frozen, so `--state_cache FOLDER` runs its encoder once over
all pairs and every epoch, and every further training on them, reads its states from there.
"""

from argparse import Namespace
from dataclasses import dataclass, field

from datasets import Dataset, concatenate_datasets
from presets import parse_with_preset
from training_speech import ResumableArguments, ValidatedSpeechArguments
from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from clearspeech.configuration.configuration_disentangled_whisper import UNKNOWN_NOISE
from clearspeech.modeling.modeling_disentangled_whisper import (
    DisentangledWhisperForConditionalGeneration,
    latent_fields,
)
from clearspeech.processing.corpora import load_noise
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.noisy_pairs import NoisyPairCollator, mix_pairs, noise_perturber
from clearspeech.processing.processing_stable_token import StableTokenProcessor
from clearspeech.trainers.encoder_states import EncoderStatesCollator, cache_encoder_states
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_disentangled_whisper import (
    DisentangledWhisperTrainer,
    DisentangledWhisperTrainingArguments,
)

PRESETS = {
    "paper": dict(eval_strategy="epoch", num_train_epochs=30, save_total_limit=2, dataloader_num_workers=8),
    "mini": dict(
        base_model="hub_cards/mini/whisper",
        max_seconds=8.0,
        max_validation_rows=320,
        downsampling="mean",
        upsampling="repeat",
        max_steps=5000,
        bf16=True,
        codebook_decay=0.99,
        noise_weight=0.03,
        noise_head_layers=1,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        fit_bottleneck_rows=512,
        clean_is_unknown=True,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=500,
        logging_steps=25,
        save_steps=500,
        save_total_limit=1,
        use_cpu=True,
    ),
}

LATENT_FLAGS = (  # whose defaults are a latent model's own values
    "bottleneck",
    "downsampling",
    "upsampling",
    "codebook_size",
    "codebook_distance",
    "normalize_latents",
    "refinement_layers",
    "noise_head_layers",
)


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    dataset: list[str] = field(metadata={"help": "Corpora of pairs or of clean speech, see processing/corpora.py."})
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    base_model: str = field(default="openai/whisper-medium", metadata={"help": "Whisper folder or Hub id."})
    language: str | None = field(
        default=None, metadata={"help": "Code of the speech's language, for a multilingual base: en, de, ..."}
    )
    latent_model: str | None = field(
        default=None,
        metadata={"help": "DisentangledWhisper whose trained modules, and flags of shape, to go on with."},
    )
    bottleneck: str = field(
        default="quantizer", metadata={"help": "The method, or the baseline.", "choices": ["quantizer", "adapter"]}
    )
    downsampling: str = field(default="conv_transformer", metadata={"help": "mean, conv or conv_transformer."})
    upsampling: str = field(default="repeat", metadata={"help": "repeat or conv."})
    codebook_size: int = field(default=1024, metadata={"help": '"N_CB = 1024 showed the best results"'})
    codebook_decay: float = field(default=0.9, metadata={"help": '"a codebook decay of 0.9"'})
    codebook_distance: str = field(default="l2", metadata={"help": "l2 or cosine."})
    normalize_latents: bool = field(default=False, metadata={"help": "Latents of zero mean and unit variance."})
    dead_code_threshold: float = field(
        default=0.0, metadata={"help": "Restart codes that are used less; 0 for never."}
    )
    refinement_layers: int = field(default=1, metadata={"help": "Transformer layers after the up-sampling."})
    noise_head_layers: int = field(default=0, metadata={"help": "Transformer layers in the noise head."})
    noise_dataset: list[str] = field(
        default_factory=list, metadata={"help": "Corpora of noise with classes, to be mixed with clean speech."}
    )
    noise_classes: list[str] = field(
        default_factory=list, metadata={"help": "Classes of noise to mix with and to learn; all when none is given."}
    )
    snrs_db: list[float] = field(
        default_factory=lambda: [0.0, 5.0, 10.0, 15.0],
        metadata={"help": "SNRs to mix at, in dB; VoiceBank-DEMAND's by default."},
    )
    copies: int = field(default=1, metadata={"help": "Mixtures of each clean training utterance."})
    state_cache: str | None = field(default=None, metadata={"help": "Folder to keep the frozen encoder's states in."})
    check_order: bool = field(default=True, metadata={"help": "Refuse pairs whose halves seem to be swapped."})


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[RecipeArguments, DisentangledWhisperTrainingArguments]:
    """
    Command-line arguments over the latent model's shape over the preset's defaults over the paper's.

    Raises:
        ValueError: a latent model that is none, or one that should be fitted anew.
    """
    classes = (RecipeArguments, DisentangledWhisperTrainingArguments)
    recipe, args = parse_with_preset(classes, PRESETS, arguments, latent_defaults)
    if recipe.latent_model and args.fit_bottleneck_rows:
        raise ValueError(
            f"--fit_bottleneck_rows {args.fit_bottleneck_rows} would overwrite the projections and codes of "
            f"{recipe.latent_model}: leave out one of them."
        )
    return recipe, args


def latent_defaults(known: Namespace) -> dict:
    """What follows from --latent_model: its shape, and nothing to fit anew."""
    if not known.latent_model:
        return {}
    fields = latent_fields(known.latent_model)
    return dict(fit_bottleneck_rows=0) | {name: fields[name] for name in LATENT_FLAGS}


def load_pairs(recipe: RecipeArguments, split: str) -> tuple[Dataset, list[str]]:
    """
    The pairs of all corpora in a split and the classes of noise in them; clean speech is mixed with the split's own
    noise clips.

    Raises:
        ValueError: clean speech without a noise corpus, or pairs with one.
    """
    speech = recipe.load(split)
    if "clean_audio" in speech.column_names:
        if recipe.noise_dataset:
            raise ValueError(f"{recipe.dataset} are pairs, noisy already: leave out --noise_dataset.")
        return speech, sorted(set(speech.select_columns("noise")["noise"]) - {"", UNKNOWN_NOISE})
    if not recipe.noise_dataset:
        raise ValueError(f"{recipe.dataset} are not pairs: they are mixed to pairs, and that needs a --noise_dataset.")
    noise = [load_noise(name, split, on_error=recipe.on_error) for name in recipe.noise_dataset]
    perturber = noise_perturber(concatenate_datasets(noise), recipe.snrs_db, recipe.noise_classes or None)
    return mix_pairs(speech, perturber, recipe.copies if split == "train" else 1), sorted(
        set(perturber.noise_pools) - {"", UNKNOWN_NOISE}
    )


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    (train, noise_labels), (validation, validated) = (load_pairs(recipe, split) for split in ("train", "validation"))
    pairs = {"train": train, "validation": validation}
    is_classified = recipe.bottleneck == "quantizer" and args.noise_weight
    unseen = sorted(set(validated) - set(noise_labels))
    if is_classified and unseen:
        raise ValueError(f"the validation split has noises that training has not: {unseen}; leave their rows out.")
    feature_extractor = StableTokenFeatureExtractor.from_pretrained(recipe.base_model)
    tokenizer = load_tokenizer(recipe.base_model, recipe.language)
    model = build_model(recipe, noise_labels if is_classified else [])
    collator = NoisyPairCollator(
        tokenizer,
        model.config.decoder_start_token_id,
        model.config.noise_classes,
        check_order=recipe.check_order,
    )
    if recipe.state_cache:
        model.to(args.device)  # where the trainer will want it, and where encoding is fast
        pairs = {
            split: keep_states(recipe, model, pairs[split], split, collator, feature_extractor) for split in pairs
        }
        collator = EncoderStatesCollator(collator, feature_extractor, model.config.d_model)
    trainer = DisentangledWhisperTrainer(
        model=model,
        args=args,
        train_dataset=pairs["train"],
        eval_dataset=pairs["validation"],
        data_collator=collator,
        feature_extractor=feature_extractor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        StableTokenProcessor(feature_extractor, tokenizer).save_pretrained(args.output_dir)


def load_tokenizer(base_model: str, language: str | None) -> PreTrainedTokenizerBase:
    """
    The base's; with a language, labels start with language, task and no timestamps, as the frozen decoder knows it.

    Raises:
        ValueError: a language for a base whose tokenizer is no multilingual Whisper's.
    """
    tokenizer = AutoTokenizer.from_pretrained(base_model)
    if language is not None:
        if not hasattr(tokenizer, "set_prefix_tokens"):
            raise ValueError(
                f"--language {language} is for a multilingual Whisper; the tokenizer of {base_model} is a "
                f"{type(tokenizer).__name__}, which knows no languages. Leave it out."
            )
        tokenizer.set_prefix_tokens(language=language, task="transcribe", predict_timestamps=False)
    return tokenizer


def build_model(recipe: RecipeArguments, noise_labels: list[str]) -> DisentangledWhisperForConditionalGeneration:
    """A frozen Whisper with new or taken-over modules, asked for text in `--language`."""
    model = DisentangledWhisperForConditionalGeneration.from_whisper(
        recipe.base_model,
        recipe.latent_model,
        noise_labels=noise_labels,
        codebook_decay=recipe.codebook_decay,
        dead_code_threshold=recipe.dead_code_threshold,
        **{name: recipe.__dict__[name] for name in LATENT_FLAGS},
    )
    if recipe.language is not None:
        model.generation_config.language = recipe.language
    model.prompt_ids()  # now, not after the training: a language that the base does not have is an error
    return model


def keep_states(recipe: RecipeArguments, model, pairs, split: str, collator, feature_extractor) -> Dataset:
    """The split's encoder states, from `--state_cache` or written there."""
    named = ("dataset", "noise_dataset", "noise_classes", "snrs_db", "copies", "max_seconds")
    description = {name: recipe.__dict__[name] for name in named} | {"split": split}
    folder = f"{recipe.state_cache}/{split}"
    states = cache_encoder_states(model.model, pairs, collator, feature_extractor, folder, description)
    return states if recipe.bottleneck == "quantizer" else states.remove_columns("clean_states")


if __name__ == "__main__":
    main()
