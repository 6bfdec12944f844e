"""
Measure what DisentangledWhisper's parts cost, each as a ratio of two things run side by side, and count its weights.

    python recipes/benchmark_disentangled_whisper.py

Hardware: one core of a quiet machine (or `--device cuda`), 6 GB of memory, Linux; about 10 minutes. Stored under
"benchmarks" and "counts" in `hub_cards/results/disentangled_whisper.json`. How it is measured: see
`recipes/benchmark_stable_token.py`. Weights are random in the shape of a Whisper.

* `bottleneck_vs_encoder_STRATEGY`: Whisper's encoder, latent encoder, quantizer and latent decoder, against the frozen
  encoder alone, for three of the six strategies.
* `step_with_kept_states_vs_computed`: a training step that reads both views' encoder states from memory, against one
  that computes them from waveforms.
* counts: total and trainable weights at whisper-medium's size for all six strategies, without allocating them.
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from datasets import Dataset
from measurement import SHAPES, compare, make_waveforms, run_benchmarks, side_by_side, whisper_of_shape
from transformers import HfArgumentParser

from clearspeech import (
    DisentangledWhisperConfig,
    DisentangledWhisperForConditionalGeneration,
    StableTokenFeatureExtractor,
)
from clearspeech.configuration.configuration_disentangled_whisper import DOWNSAMPLINGS, UPSAMPLINGS
from clearspeech.processing.audio_reading import SAMPLING_RATE
from clearspeech.trainers.results import update_results
from clearspeech.trainers.trainer_disentangled_whisper import (
    DisentangledWhisperTrainer,
    DisentangledWhisperTrainingArguments,
)

METHOD = "disentangled_whisper"
MEASURED_STRATEGIES = (("mean", "repeat"), ("conv", "conv"), ("conv_transformer", "repeat"))
LABELS = [f"noise {number}" for number in range(10)]


@dataclass
class RecipeArguments:
    shape: str = field(default="base", metadata={"help": "Whisper's size.", "choices": list(SHAPES)})
    only: list[str] = field(default_factory=list, metadata={"help": "Parts to run, all when empty: see BENCHMARKS."})
    seconds: float = field(default=10.0, metadata={"help": "Length of the synthetic utterances."})
    batch_size: int = field(default=4, metadata={"help": "Utterances in a batch."})
    rounds: int = field(default=9, metadata={"help": "Turns of each candidate; training steps take a third of them."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_threads: int = field(default=1, metadata={"help": "Of torch on the CPU."})
    results: str = field(default=f"hub_cards/results/{METHOD}.json", metadata={"help": "JSON file to add to."})


def build_model(shape: str, downsampling: str, upsampling: str) -> DisentangledWhisperForConditionalGeneration:
    config = DisentangledWhisperConfig.from_whisper(
        whisper_of_shape(shape), downsampling=downsampling, upsampling=upsampling, noise_labels=LABELS
    )
    return DisentangledWhisperForConditionalGeneration(config)


def strategy_name(downsampling: str, upsampling: str) -> str:
    """As in Table I: MR, MC, CC, CR, TR, TC."""
    return {"mean": "M", "conv": "C", "conv_transformer": "T"}[downsampling] + upsampling[0].upper()


@torch.no_grad()
def benchmark_bottleneck(recipe: RecipeArguments) -> list[dict]:
    entries = []
    for strategy in MEASURED_STRATEGIES:
        model = build_model(recipe.shape, *strategy).to(recipe.device).eval()
        features = torch.randn(recipe.batch_size, model.config.num_mel_bins, int(recipe.seconds * 100))
        inputs = features.to(recipe.device), torch.ones(features.shape[::2], dtype=torch.long, device=recipe.device)
        candidates = {
            "bottleneck": lambda model=model, inputs=inputs: model.encode_speech(*inputs),
            "encoder": lambda model=model, inputs=inputs: model.model.encoder_states(*inputs),
        }
        seconds = side_by_side(candidates, recipe.rounds, recipe.device)
        name = f"bottleneck_vs_encoder_{strategy_name(*strategy)}"
        entries.append(compare(name, seconds, *candidates, _setting(recipe)))
    return entries


def benchmark_kept_states(recipe: RecipeArguments) -> list[dict]:
    model = build_model(recipe.shape, "mean", "repeat")
    with tempfile.TemporaryDirectory() as folder:
        step = training_step(model, recipe, folder)
        computed, kept = both_batches(model, recipe)
        candidates = {"kept": lambda: step(kept), "computed": lambda: step(computed)}
        seconds = side_by_side(candidates, max(recipe.rounds // 3, 2), recipe.device)
    return [compare("step_with_kept_states_vs_computed", seconds, *candidates, _setting(recipe))]


def training_step(model, recipe: RecipeArguments, folder: str) -> Callable[[dict], None]:
    """One optimizer step of the trainer with all losses on a given batch."""
    args = DisentangledWhisperTrainingArguments(
        output_dir=folder, noise_weight_schedule="constant", use_cpu=recipe.device == "cpu", report_to=[]
    )
    trainer = DisentangledWhisperTrainer(
        model=model.to(recipe.device),
        args=args,
        train_dataset=Dataset.from_dict({"row": [0]}),
        feature_extractor=StableTokenFeatureExtractor(feature_size=model.config.num_mel_bins),
    )
    trainer.current_gradient_accumulation_steps = 1
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-5)

    def step(batch: dict):
        model.train()
        counts = trainer._get_num_items_in_batch([batch], model.device)
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def both_batches(model, recipe: RecipeArguments) -> tuple[dict, dict]:
    """The same random pairs as waveforms, and as the states that a cache keeps of them."""
    num_samples = int(recipe.seconds * SAMPLING_RATE)
    waveforms = make_waveforms(2 * recipe.batch_size, num_samples).to(recipe.device)
    lengths = torch.full((recipe.batch_size,), num_samples, device=recipe.device)
    shared = {
        "num_samples": lengths,
        "labels": torch.randint(2, 31, (recipe.batch_size, 40), device=recipe.device),
        "seeds": torch.arange(recipe.batch_size, device=recipe.device),
        "noise_labels": torch.zeros(recipe.batch_size, dtype=torch.long, device=recipe.device),
    }
    noisy, clean = waveforms.chunk(2)
    computed = shared | {"waveforms": noisy, "clean_waveforms": clean}
    extractor = StableTokenFeatureExtractor(feature_size=model.config.num_mel_bins)
    features, mask = extractor.extract(waveforms, lengths.repeat(2))
    noisy, clean = model.eval().model.encoder_states(features, mask).chunk(2)
    kept = {"encoder_states": noisy, "clean_encoder_states": clean, "attention_mask": mask[: recipe.batch_size]}
    return computed, shared | kept


def count_weights() -> list[dict]:
    """Total and trainable weights at whisper-medium's size."""
    entries = []
    for strategy in itertools.product(DOWNSAMPLINGS, UPSAMPLINGS):
        with torch.device("meta"):
            model = build_model("medium", *strategy)
        name = f"whisper-medium, {strategy_name(*strategy)}"
        trainable = model.num_parameters(only_trainable=True)
        entries.append({"name": name, "parameters": model.num_parameters(), "trainable_parameters": trainable})
    return entries


BENCHMARKS = {"bottleneck": benchmark_bottleneck, "kept_states": benchmark_kept_states}


def _setting(recipe: RecipeArguments) -> str:
    machine = f"{recipe.num_threads} thread(s)" if recipe.device == "cpu" else torch.cuda.get_device_name()
    return f"{recipe.shape} shape, N_CB=1024, {recipe.batch_size} x {recipe.seconds:g} s, {machine}"


def main(arguments: list[str] | None = None) -> list[dict]:
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    counts = count_weights()
    for entry in counts:
        print(f"{entry['name']:24} {entry['parameters']:>13,} weights, {entry['trainable_parameters']:>11,} trained")
    update_results(recipe.results, METHOD, counts=counts)
    return run_benchmarks(BENCHMARKS, recipe, METHOD, arguments)


if __name__ == "__main__":
    main()
