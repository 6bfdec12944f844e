"""
Train StableToken: put a voting quantizer into a Whisper and train it to keep its tokens under noise.

The paper's run (its Tables 7 to 9; eight 80 GB GPUs or more, weeks for its 150 000 hours):

    accelerate launch --config_file recipes/accelerate/zero2.yaml recipes/train_stable_token.py \\
        --base_model openai/whisper-large-v3 --dataset openslr/librispeech_asr:all \\
        --noise_dataset ashraq/esc50 --bf16 --max_steps 100000 --output_dir outputs/stable_token

The same on two CPU cores, from the base in `hub_cards/mini/whisper` (800 steps: about 7 minutes):

    accelerate launch --cpu recipes/train_stable_token.py --preset mini --dataset embedded --output_dir outputs/mini
"""

from dataclasses import dataclass, field

from datasets import Dataset, IterableDataset
from presets import parse_with_preset
from training_speech import ResumableArguments, SpeechArguments
from transformers import AutoTokenizer, set_seed

from clearspeech.modeling.modeling_stable_token import StableTokenForConditionalGeneration
from clearspeech.processing.collators import SpeechTextCollator
from clearspeech.processing.corpora import leave_out_long, load_corpora, load_noise
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.perturbation import TRAINING_PERTURBATIONS, Perturber
from clearspeech.processing.processing_stable_token import StableTokenProcessor
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_stable_token import StableTokenTrainer, StableTokenTrainingArguments

PRESETS = {
    "paper": {},
    "mini": dict(
        base_model="hub_cards/mini/whisper",
        max_seconds=8.0,
        decoded=True,
        num_bits=8,
        max_steps=800,
        fit_quantizer_rows=256,
        entropy_weight=0.1,
        entropy_temperature=1.0,
        consensus_reduction="sum",
        bf16=True,
        learning_rate=5e-4,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        train_sampling_strategy="group_by_length",
        logging_steps=25,
        save_steps=200,
        save_total_limit=1,
        use_cpu=True,
    ),
}


@dataclass
class RecipeArguments(SpeechArguments, ResumableArguments):
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    base_model: str = field(default="openai/whisper-large-v3", metadata={"help": "Whisper folder or Hub id."})
    num_voters: int = field(default=5, metadata={"help": '"N = 5"'})
    num_bits: int = field(default=13, metadata={"help": '"d = 13", 8192 codes'})
    noise_dataset: list[str] = field(
        default_factory=list, metadata={"help": "Corpora of real noise; their ESC-10 classes are never trained on."}
    )
    noise_aware: bool = field(default=True, metadata={"help": "False trains on clean speech only."})
    decoded: bool = field(default=False, metadata={"help": "Decode all audio once, into memory-mapped arrays."})
    shuffle_buffer: int = field(default=500, metadata={"help": "Rows of a stream among which the next is drawn."})


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, StableTokenTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, StableTokenTrainingArguments), PRESETS, arguments)


def load_training_speech(recipe: RecipeArguments, seed: int) -> Dataset | IterableDataset:
    """The training split of all corpora, utterances of at most `max_seconds`; a stream is shuffled, anew each pass."""
    speech = load_corpora(recipe.dataset, "train", on_error=recipe.on_error, decoded=recipe.decoded)
    speech = leave_out_long(speech, recipe.max_seconds)
    if isinstance(speech, IterableDataset):
        return speech.shuffle(seed=seed, buffer_size=recipe.shuffle_buffer)
    return speech


def build_perturber(recipe: RecipeArguments) -> Perturber | None:
    """Table 9 with the noise corpora's clips; without noise corpora, its synthetic rows."""
    if not recipe.noise_aware:
        return None
    noise = [load_noise(name, "train", exclude_esc10=True, on_error=recipe.on_error) for name in recipe.noise_dataset]
    clips = [row["audio"] for corpus in noise for row in corpus]
    rows = [row for row in TRAINING_PERTURBATIONS if clips or row.kind != "real"]
    return Perturber(rows, clips or None)


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    feature_extractor = StableTokenFeatureExtractor.from_pretrained(recipe.base_model)
    tokenizer = AutoTokenizer.from_pretrained(recipe.base_model)
    model = StableTokenForConditionalGeneration.from_whisper(
        recipe.base_model, num_voters=recipe.num_voters, num_bits=recipe.num_bits
    )
    trainer = StableTokenTrainer(
        model=model,
        args=args,
        train_dataset=load_training_speech(recipe, args.seed),
        data_collator=SpeechTextCollator(tokenizer, model.config.decoder_start_token_id),
        feature_extractor=feature_extractor,
        perturber=build_perturber(recipe),
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    if trainer.is_world_process_zero():
        StableTokenProcessor(feature_extractor, tokenizer).save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
