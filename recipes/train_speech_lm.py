"""
Train a SpeechLM: a causal language model of text learns to read speech units, with Smoothed Label Distillation.

The SLD paper's run (its section 4.1; eight 80 GB GPUs, one day), after `recipes/fit_speech_units.py`:

    accelerate launch --multi_gpu --num_processes 8 recipes/train_speech_lm.py --bf16 \\
        --text_model openai-community/gpt2-medium --units outputs/units \\
        --dataset openslr/librispeech_asr:all --output_dir outputs/speech_lm

`--speech_loss none`, `ce`, `label_smoothing`, `kl` and `sld` are the rows of its Table 1. A speech LLM of several
tasks on a large text model, with adapters and ZeRO-3, units from a StableToken folder as they are:

    accelerate launch --config_file recipes/accelerate/zero3.yaml recipes/train_speech_lm.py --bf16 --lora \\
        --text_model Qwen/Qwen2.5-3B --units outputs/stable_token --speech_loss none --time_masking 0 \\
        --learning_rate 4e-4 --lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{"min_lr": 4e-5}' \\
        --weight_decay 0.1 --dataset openslr/librispeech_asr:all --emotion_dataset RAVDESS \\
        --output_dir outputs/speech_llm

Its rates and decay are those of StableToken's Table 15.

On two CPU cores, units from the kept mini StableToken (about 15 minutes):

    accelerate launch --cpu recipes/train_speech_lm.py --preset mini --dataset embedded --output_dir outputs/speech_lm
"""

from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset, concatenate_datasets, interleave_datasets
from presets import parse_with_preset
from training_speech import ResumableArguments, ValidatedSpeechArguments
from transformers import AutoTokenizer, set_seed
from transformers.integrations import unset_hf_deepspeed_config

from clearspeech.modeling.modeling_speech_lm import SpeechLMForCausalLM
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.unit_sequences import UnitSequenceCollator, make_sequences
from clearspeech.trainers.adapters import add_adapters, save_merged
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_speech_lm import SpeechLMTrainer, SpeechLMTrainingArguments
from clearspeech.trainers.unit_extraction import extract_units

PRESETS = {
    "paper": dict(
        per_device_train_batch_size=8,  # "batch size 64" on eight GPUs
        lr_scheduler_type="linear",
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        evaluation_wer_rows=1215,
        metric_for_best_model="eval_wer",
        greater_is_better=False,
    ),
    "mini": dict(
        text_model="hub_cards/mini/gpt2",
        from_scratch=True,
        units="hub_cards/mini/stable_token",
        max_seconds=8.0,
        max_validation_rows=320,
        max_steps=3000,
        bf16=True,
        learning_rate=1e-3,
        warmup_steps=0.1,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=32,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=250,
        logging_steps=25,
        save_steps=500,
        save_total_limit=1,
        use_cpu=True,
    ),
}


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    dataset: list[str] = field(
        default_factory=list, metadata={"help": "Corpora with transcripts, see processing/corpora.py."}
    )
    emotion_dataset: list[str] = field(
        default_factory=list,
        metadata={"help": "Corpora with emotions: a second task. With two, sequences begin with prompts."},
    )
    task_weights: list[float] = field(
        default_factory=list,
        metadata={"help": "How often each task is drawn, transcripts first; by their rows when not given."},
    )
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    text_model: str = field(
        default="openai-community/gpt2-medium", metadata={"help": '"the GPT2-medium model (350M parameters)"'}
    )
    from_scratch: bool = field(default=False, metadata={"help": "The text model's shape with random weights."})
    units: str | None = field(
        default=None, metadata={"help": "Folder of fit_speech_units.py, or of any audio tokenizer of the suite."}
    )
    unit_cache: str | None = field(
        default=None, metadata={"help": "Folder to keep the corpora's units in; output_dir/units when not given."}
    )
    speeds: list[float] = field(
        default_factory=lambda: [1.0, 0.9, 1.1], metadata={"help": '"using factor 0.9 and 1.1"'}
    )
    max_validation_rows: int | None = field(
        default=None, metadata={"help": "Validate on so many rows of each task, all if not given."}
    )
    lora: bool = field(
        default=False,
        metadata={"help": "Train adapters and the new rows only: output_dir/adapter, and merged in output_dir."},
    )
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters; their scale is 2."})

    def __post_init__(self):
        if self.units is None:
            raise ValueError("Got no --units: pass the folder of fit_speech_units.py or of an audio tokenizer.")
        if not self.dataset and not self.emotion_dataset:
            raise ValueError("Got neither --dataset nor --emotion_dataset.")
        if self.task_weights and len(self.task_weights) != len(self.sources):
            raise ValueError(f"Got {len(self.task_weights)} --task_weights for the tasks {list(self.sources)}.")
        if self.task_weights and min(self.task_weights) <= 0:  # a task that is never drawn would never be used up
            raise ValueError(f"--task_weights must be above 0; got {self.task_weights}. Leave out a task's corpora.")
        if self.lora and self.from_scratch:
            raise ValueError("--lora leaves the text model as it was trained: with it pass --from_scratch False.")

    @property
    def sources(self) -> dict[str, list[str]]:
        """The corpora of each task."""
        sources = {"asr": self.dataset, "emotion": self.emotion_dataset}
        return {task: names for task, names in sources.items() if names}


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, SpeechLMTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, SpeechLMTrainingArguments), PRESETS, arguments)


def load_sequences(
    recipe: RecipeArguments, processor: SpeechLMProcessor, split: str, max_tokens: int, cache: Path, seed: int
) -> Dataset:
    """The split's sequences of all tasks; units are extracted once, training utterances at all speeds."""
    speeds = recipe.speeds if split == "train" else [1.0]
    parts = []
    for task, sources in recipe.sources.items():
        description, speech = recipe.describe(split, sources), recipe.load(split, sources)
        units = extract_units(speech, processor, cache / f"{task}_{split}", description, speeds)
        parts.append(make_sequences(units, processor, max_tokens, task, prompted=len(recipe.sources) > 1))
    if split != "train" or not recipe.task_weights:
        return concatenate_datasets(parts)
    weights = [weight / sum(recipe.task_weights) for weight in recipe.task_weights]
    return interleave_datasets(parts, weights, seed, stopping_strategy="all_exhausted")


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)
    unset_hf_deepspeed_config()  # models are made whole, on every process: ZeRO-3's trainer splits its own up

    units = SpeechLMProcessor.from_pretrained(recipe.units)
    # weights that are trained need full precision, those under adapters keep their own
    dtype = "auto" if recipe.lora else torch.float32
    model = SpeechLMForCausalLM.from_text_model(
        recipe.text_model, units.num_speech_units, recipe.from_scratch, dtype=dtype
    )
    tokenizer = AutoTokenizer.from_pretrained(recipe.text_model)
    processor = units.with_text_model(
        tokenizer, model.config.text_vocab_size, list(recipe.sources), recipe.max_seconds
    )
    processor.audio_tokenizer.to(args.device)
    cache, context = Path(recipe.unit_cache or f"{args.output_dir}/units"), model.config.max_position_embeddings
    sequences = {
        split: load_sequences(recipe, processor, split, context, cache, args.seed) for split in ("train", "validation")
    }
    processor.audio_tokenizer.to("cpu")  # units are all made
    trainer = SpeechLMTrainer(
        model=add_adapters(model, recipe.lora_rank) if recipe.lora else model,
        args=args,
        train_dataset=sequences["train"],
        eval_dataset=sequences["validation"],
        data_collator=UnitSequenceCollator(model.generation_config.pad_token_id),
        processor=processor,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    if recipe.lora:
        save_merged(trainer, recipe.text_model)
    else:
        trainer.save_model()
    if trainer.is_world_process_zero():
        processor.save_pretrained(args.output_dir)


if __name__ == "__main__":
    main()
