"""
Measure what SpeechLM's parts cost, each as a ratio of two things run side by side.

    python recipes/benchmark_speech_lm.py

Hardware: one core of a quiet machine (or `--device cuda`), 5 GB of memory, Linux; about 5 minutes. Stored under
"benchmarks" in `hub_cards/results/speech_lm.json`. How it is measured: see `recipes/benchmark_stable_token.py`.
Weights, units and texts are random in the shape of a text model.

* `sld_step_vs_loss_masking_step_SHAPE`: `SpeechLMTrainer`'s loss with its gradient and AdamW's step, with Smoothed
  Label Distillation against Loss Masking, for the mini and for GPT-2 with the paper's 56259 rows. Target 1.05.
* `..._memory`: peak of such a step above what is held between steps (weights and AdamW's averages). Target 1.05.
* `generation_one_by_one_vs_batched`: greedy search for 16 utterances of several lengths, each of as many tokens,
  alone and in one batch padded on the left; tokens per second beside it.
* `kmeans_real_time_factor`: seconds of speech at 50 frames per second that `fit_kmeans` sees in a second of one core,
  once it has started.
* `kmeans_memory_4_times_the_corpus`: its peak at four times the frames against its peak at the frames. Target 1.05.
"""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from measurement import compare, measure_peak, peak_during, run_benchmarks, side_by_side
from torch import Tensor
from transformers import GPT2Config, HfArgumentParser

from clearspeech import SpeechLMConfig, SpeechLMForCausalLM
from clearspeech.processing.unit_sequences import UnitSequenceCollator
from clearspeech.trainers.trainer_speech_lm import SpeechLMTrainer, SpeechLMTrainingArguments
from clearspeech.trainers.unit_clustering import fit_kmeans

METHOD = "speech_lm"
SHAPES = {  # width, layers, heads, rows of text, units; utterances in a batch and tokens in each
    "test": (16, 2, 2, 31, 20, 2, 20),
    "mini": (128, 4, 4, 31, 1000, 16, 200),  # long for the mini: its loss is taken in parts
    "gpt2": (768, 12, 12, 50257, 6000, 2, 200),
}
FRAMES_PER_SECOND = 50  # of HuBERT, WavLM and Whisper
FRAMES_PER_UTTERANCE = 300
DIM = 192


@dataclass
class RecipeArguments:
    shapes: list[str] = field(
        default_factory=lambda: ["mini", "gpt2"], metadata={"help": f"Text models, of {', '.join(SHAPES)}."}
    )
    only: list[str] = field(default_factory=list, metadata={"help": "Parts to run, all when empty: see BENCHMARKS."})
    rounds: int = field(default=27, metadata={"help": "Turns of each candidate; steps of GPT-2 take a third of them."})
    frames: int = field(default=40_000, metadata={"help": "Of the smaller corpus for k-means."})
    clusters: int = field(default=500, metadata={"help": "Of k-means; a step sees four times as many frames."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_threads: int = field(default=1, metadata={"help": "Of torch on the CPU."})
    results: str = field(default=f"hub_cards/results/{METHOD}.json", metadata={"help": "JSON file to add to."})

    def __post_init__(self):
        unknown = set(self.shapes) - set(SHAPES)
        if unknown:
            raise ValueError(f"--shapes takes {', '.join(SHAPES)}; got {', '.join(sorted(unknown))}.")


def build_model(shape: str) -> SpeechLMForCausalLM:
    """A GPT-2 of a named size with rows for units; the last row of text pads."""
    width, layers, heads, rows, units, _, _ = SHAPES[shape]
    ends = dict(bos_token_id=None, eos_token_id=rows - 1)
    text_config = GPT2Config(vocab_size=rows, n_embd=width, n_layer=layers, n_head=heads, **ends)
    model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(text_config, units))
    model.generation_config = model.text_generation_config(text_config)
    return model


def training_batch(model: SpeechLMForCausalLM, shape: str, device: str) -> dict[str, Tensor]:
    """What the collator gives: four fifths of each sequence are units."""
    *_, batch, tokens = SHAPES[shape]
    random, config = np.random.default_rng(0), model.config
    rows = []
    for _ in range(batch):
        units = random.integers(config.first_unit_token_id, config.vocab_size, tokens * 4 // 5)
        text = random.integers(0, config.text_vocab_size - 1, tokens - len(units) - 2)
        ids = [*units.tolist(), config.speech_end_token_id, *text.tolist(), config.text_end_token_id]
        rows.append({"input_ids": ids, "num_prompt": 0})
    collate = UnitSequenceCollator(model.generation_config.pad_token_id)
    return {name: values.to(device) for name, values in collate(rows).items()}


def training_steps(shape: str, losses: tuple[str, ...], recipe: RecipeArguments) -> dict[str, Callable[[], None]]:
    """By loss on units one optimizer step of the trainer, all with the same model, batch and averages."""
    model = build_model(shape).to(recipe.device)
    batch, optimizer = training_batch(model, shape, recipe.device), torch.optim.AdamW(model.parameters(), lr=1e-5)

    def make_step(speech_loss: str) -> Callable[[], None]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = dict(use_cpu=recipe.device == "cpu", report_to=[], speech_loss=speech_loss)
            trainer = SpeechLMTrainer(model, SpeechLMTrainingArguments(folder, **arguments))
        trainer.current_gradient_accumulation_steps = 1
        counts = trainer.count_items(batch)

        def step():
            model.train()
            trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return {speech_loss: make_step(speech_loss) for speech_loss in losses}


def step_peak(shape: str, speech_loss: str, recipe: RecipeArguments) -> float:
    """Megabytes of one step, above weights and averages; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)
    step = training_steps(shape, (speech_loss,), recipe)[speech_loss]
    step()
    return peak_during(step, recipe.device)


def benchmark_training(recipe: RecipeArguments) -> list[dict]:
    entries = []
    for shape in recipe.shapes:
        steps = training_steps(shape, ("sld", "none"), recipe)
        candidates = {"sld": steps["sld"], "loss_masking": steps["none"]}
        rounds = -(-recipe.rounds // 3) if shape == "gpt2" else recipe.rounds
        seconds = side_by_side(candidates, rounds, recipe.device)
        name = f"sld_step_vs_loss_masking_step_{shape}"
        entries.append(compare(name, seconds, *candidates, _setting(shape, recipe), target="at most 1.05"))
    return entries


def benchmark_training_memory(recipe: RecipeArguments) -> list[dict]:
    entries = []
    for shape in recipe.shapes:
        megabytes = {
            title: measure_peak(step_peak, shape, loss, recipe)
            for title, loss in (("sld", "sld"), ("loss_masking", "none"))
        }
        entries.append(
            {
                "name": f"sld_step_vs_loss_masking_step_{shape}_memory",
                "ratio": round(megabytes["sld"] / megabytes["loss_masking"], 4),
                "target": "at most 1.05",
                "megabytes": {title: round(value, 1) for title, value in megabytes.items()},
                "setting": _setting(shape, recipe),
            }
        )
    return entries


@torch.no_grad()
def benchmark_generation(recipe: RecipeArguments) -> list[dict]:
    shape = recipe.shapes[0]
    model = build_model(shape).to(recipe.device).eval()
    config, pad = model.config, model.generation_config.pad_token_id
    longest, new_tokens, num_utterances = SHAPES[shape][-1], 32, 16
    lengths = torch.linspace(longest / 2, longest, num_utterances).int().tolist()
    prefixes = torch.full((num_utterances, longest), pad)
    mask = torch.zeros_like(prefixes)
    for row, length in enumerate(lengths):
        prefixes[row, -length:] = torch.randint(config.first_unit_token_id, config.vocab_size, (length,))
        mask[row, -length:] = 1
    prefixes, mask = prefixes.to(recipe.device), mask.to(recipe.device)

    def write(ids: Tensor, attention_mask: Tensor):
        limits = dict(min_new_tokens=new_tokens, max_new_tokens=new_tokens)
        model.generate(input_ids=ids, attention_mask=attention_mask, **limits)

    def one_by_one():
        for row, length in enumerate(lengths):
            write(prefixes[row : row + 1, -length:], mask[row : row + 1, -length:])

    candidates = {"one_by_one": one_by_one, "batched": lambda: write(prefixes, mask)}
    seconds = side_by_side(candidates, -(-recipe.rounds // 3), recipe.device)
    written = num_utterances * new_tokens
    rates = {name: round(written / statistics.median(values), 1) for name, values in seconds.items()}
    setting = (
        f"{shape} shape, {num_utterances} utterances of {lengths[0]} to {longest} units, {new_tokens} tokens each, "
        f"{_machine(recipe)}"
    )
    name = "generation_one_by_one_vs_batched"
    return [compare(name, seconds, *candidates, setting, tokens_per_second=rates)]


def make_features(num_frames: int) -> Iterator[tuple[str, np.ndarray]]:
    """Utterances of seeded noise, made as they are asked for."""
    random = np.random.default_rng(0)
    for first in range(0, num_frames, FRAMES_PER_UTTERANCE):
        length = min(FRAMES_PER_UTTERANCE, num_frames - first)
        yield f"utterance {first}", random.standard_normal((length, DIM), dtype=np.float32)


def fit(num_frames: int, recipe: RecipeArguments):
    options = dict(batch_size=4 * recipe.clusters, num_inits=1)
    return fit_kmeans(make_features(num_frames), recipe.clusters, **options)


def kmeans_peak(num_frames: int, recipe: RecipeArguments) -> float:
    """Megabytes of one pass over so many frames; runs in a process of its own."""
    fit(2 * recipe.clusters, recipe)  # what a first call loads is not the corpus's
    return peak_during(lambda: fit(num_frames, recipe), "cpu")


def benchmark_kmeans(recipe: RecipeArguments) -> list[dict]:
    sizes = {"once": recipe.frames, "four_times": 4 * recipe.frames}
    candidates = {name: lambda frames=frames: fit(frames, recipe) for name, frames in sizes.items()}
    seconds = side_by_side(candidates, -(-recipe.rounds // 3), "cpu")
    more = statistics.median(big - small for small, big in zip(seconds["once"], seconds["four_times"]))
    rate = (sizes["four_times"] - sizes["once"]) / more
    return [
        {
            "name": "kmeans_real_time_factor",
            "ratio": round(rate / FRAMES_PER_SECOND, 1),
            "frames_per_second": round(rate),
            "setting": f"{_kmeans_setting(recipe)}, one core",
        }
    ]


def benchmark_kmeans_memory(recipe: RecipeArguments) -> list[dict]:
    sizes = (recipe.frames, 4 * recipe.frames)
    megabytes = {frames: measure_peak(kmeans_peak, frames, recipe) for frames in sizes}
    return [
        {
            "name": "kmeans_memory_4_times_the_corpus",
            "ratio": round(megabytes[sizes[1]] / megabytes[sizes[0]], 4),
            "target": "at most 1.05",
            "megabytes": {f"{frames} frames": round(value, 1) for frames, value in megabytes.items()},
            "setting": _kmeans_setting(recipe),
        }
    ]


BENCHMARKS = {
    "training": benchmark_training,
    "training_memory": benchmark_training_memory,
    "generation": benchmark_generation,
    "kmeans": benchmark_kmeans,
    "kmeans_memory": benchmark_kmeans_memory,
}


def _machine(recipe: RecipeArguments) -> str:
    return f"{recipe.num_threads} thread(s)" if recipe.device == "cpu" else torch.cuda.get_device_name()


def _kmeans_setting(recipe: RecipeArguments) -> str:
    return f"{recipe.clusters} clusters of {DIM} dimensions, {4 * recipe.clusters} frames per step"


def _setting(shape: str, recipe: RecipeArguments) -> str:
    _, _, _, rows, units, batch, tokens = SHAPES[shape]
    return f"{shape} shape, {rows + units + 2} rows, {batch} x {tokens} tokens, {_machine(recipe)}"


def main(arguments: list[str] | None = None) -> list[dict]:
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    return run_benchmarks(BENCHMARKS, recipe, METHOD, arguments)


if __name__ == "__main__":
    main()
