"""
Measure what FactoredASR's parts cost, each as a ratio of two things run side by side.

    python recipes/benchmark_factored_asr.py

Hardware: one core of a quiet machine (or `--device cuda`), 10 GB of memory, Linux; about 15 minutes. Stored under
"benchmarks" in `hub_cards/results/factored_asr.json`. How it is measured: see `recipes/benchmark_stable_token.py`.
Weights, frames and texts are random, the models have the paper's sizes.

* `training_step_full_vs_baseline_ENCODER`: `FactoredASRTrainer`'s loss with its gradient and Adam's step, with FR,
  BG-C and MLM against without any of them. Target 1.15.
* `contrast_memory_30_vs_5_seconds`: peak of the background contrast with its gradient, for a batch of utterances of 30
  s against 5 s, 16 negatives; megabytes for 15 s, too. Linear is 6. Target 6.3.
* `transducer_loss_unfused_vs_fused_memory`: peak of the transducer's loss with its gradient, above its logits, from
  log-probabilities against torchaudio's kernel that makes these itself, which is what is trained with.
* `inference_full_vs_baseline_ENCODER`: greedy search of two models that write the same, nothing but blanks; the full
  one runs neither its context network nor its reconstructors. Target 1.02.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from measurement import compare, measure_peak, peak_during, run_benchmarks, side_by_side
from torch import Tensor
from torchaudio.functional import rnnt_loss
from train_factored_asr import OWN_ENCODERS
from transformers import HfArgumentParser

from clearspeech import FactoredASRConfig, FactoredASRForRNNT
from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.trainers.losses import background_contrast_loss, transducer_loss
from clearspeech.trainers.trainer_factored_asr import FactoredASRTrainer, FactoredASRTrainingArguments

METHOD = "factored_asr"
FRAMES_PER_SECOND = 1000 / 30  # stacked
LABELS_PER_SECOND = 4  # of 640 subwords, read English
CONTRAST_BATCH, CONTRAST_SECONDS = 8, (5, 15, 30)
SIZES = {
    "paper": ({}, {}),
    "test": (
        dict(hidden_size=16, num_hidden_layers=1),
        dict(factor_dim=16, factor_hidden_size=16, decoder_hidden_size=16, vocab_size=21, blank_token_id=20),
    ),
}
WITHOUT_FACTORS = dict(mi_weight=0.0, contrast_weight=0.0, mask_probability=0.0)


@dataclass
class RecipeArguments:
    encoders: list[str] = field(
        default_factory=lambda: list(OWN_ENCODERS), metadata={"help": f"Of {', '.join(OWN_ENCODERS)}."}
    )
    size: str = field(default="paper", metadata={"help": "Of the models.", "choices": list(SIZES)})
    only: list[str] = field(default_factory=list, metadata={"help": "Parts to run, all when empty: see BENCHMARKS."})
    seconds: float = field(default=10.0, metadata={"help": "Length of the synthetic utterances."})
    batch_size: int = field(default=2, metadata={"help": "Utterances in a batch; 2 at least, for the contrast."})
    rounds: int = field(default=9, metadata={"help": "Turns of each candidate."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_threads: int = field(default=1, metadata={"help": "Of torch on the CPU."})
    results: str = field(default=f"hub_cards/results/{METHOD}.json", metadata={"help": "JSON file to add to."})

    def __post_init__(self):
        unknown = set(self.encoders) - set(OWN_ENCODERS)
        if unknown:
            raise ValueError(f"--encoders takes {', '.join(OWN_ENCODERS)}; got {', '.join(sorted(unknown))}.")
        if self.batch_size < 2:
            raise ValueError(f"--batch_size must be at least 2, for negatives; got {self.batch_size}.")


def build_model(encoder: str, recipe: RecipeArguments, factorize: bool) -> FactoredASRForRNNT:
    encoder_fields, fields = SIZES[recipe.size]
    config = FactoredASRConfig(encoder_config=OWN_ENCODERS[encoder](**encoder_fields), factorize=factorize, **fields)
    return FactoredASRForRNNT(config).to(recipe.device)


def make_batch(model: FactoredASRForRNNT, recipe: RecipeArguments) -> dict[str, Tensor]:
    """What the collator gives, of utterances of one length."""
    num_frames, config = int(recipe.seconds * FRAMES_PER_SECOND), model.config
    num_labels = max(int(recipe.seconds * LABELS_PER_SECOND), 1)
    batch = {
        "input_features": torch.randn(recipe.batch_size, num_frames, config.encoder_config.input_size),
        "attention_mask": torch.ones(recipe.batch_size, num_frames, dtype=torch.long),
        "labels": torch.randint(1, config.blank_token_id, (recipe.batch_size, num_labels)),
        "seeds": torch.arange(recipe.batch_size),
    }
    return {name: values.to(recipe.device) for name, values in batch.items()}


def training_step(model: FactoredASRForRNNT, recipe: RecipeArguments, **terms) -> Callable[[], None]:
    """One optimizer step of the trainer; terms: its arguments."""
    with tempfile.TemporaryDirectory() as folder:
        args = FactoredASRTrainingArguments(folder, use_cpu=recipe.device == "cpu", report_to=[], **terms)
        trainer = FactoredASRTrainer(model, args, feature_extractor=FactoredASRFeatureExtractor())
    trainer.current_gradient_accumulation_steps = 1
    batch = make_batch(model, recipe)
    counts, optimizer = trainer.count_items(batch), torch.optim.Adam(model.parameters(), lr=1e-5)

    def step():
        model.train()
        trainer.compute_loss(model, batch, num_items_in_batch=counts).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def benchmark_training(recipe: RecipeArguments) -> list[dict]:
    entries = []
    for encoder in recipe.encoders:
        candidates = {
            "full": training_step(build_model(encoder, recipe, True), recipe),
            "baseline": training_step(build_model(encoder, recipe, False), recipe, **WITHOUT_FACTORS),
        }
        seconds = side_by_side(candidates, -(-recipe.rounds // 3), recipe.device)
        name = f"training_step_full_vs_baseline_{encoder}"
        entries.append(compare(name, seconds, *candidates, _setting(recipe), target="at most 1.15"))
    return entries


def contrast_peak(seconds: float, recipe: RecipeArguments) -> float:
    """Megabytes of the contrastive term with its gradient; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)

    def run(num_frames: int):
        shape = (CONTRAST_BATCH, num_frames)
        context = torch.randn(*shape, FactoredASRConfig().factor_dim, device=recipe.device, requires_grad=True)
        mask = torch.ones(shape, dtype=torch.bool, device=recipe.device)
        positions = torch.randint(num_frames, shape, device=recipe.device)
        shifts = 1 + torch.arange(16) % (CONTRAST_BATCH - 1)
        options = dict(temperature=0.1, normalize=True, include_positive=True, across_processes=False)
        background_contrast_loss(context, mask, positions, shifts, **options).backward()

    run(1)  # what a first call loads is not the frames'
    return peak_during(lambda: run(int(seconds * FRAMES_PER_SECOND)), recipe.device)


def benchmark_contrast_memory(recipe: RecipeArguments) -> list[dict]:
    megabytes = {seconds: measure_peak(contrast_peak, seconds, recipe) for seconds in CONTRAST_SECONDS}
    shortest, longest = min(megabytes), max(megabytes)
    return [
        {
            "name": f"contrast_memory_{longest}_vs_{shortest}_seconds",
            "ratio": round(megabytes[longest] / megabytes[shortest], 4),
            "target": "at most 6.3",
            "megabytes": {f"{seconds} s": round(value, 1) for seconds, value in megabytes.items()},
            "setting": f"{CONTRAST_BATCH} utterances, 16 negatives, {_machine(recipe)}",
        }
    ]


def transducer_peak(kernel: str, recipe: RecipeArguments) -> float:
    """Megabytes of the transducer's loss with its gradient, above its logits; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)
    blank = FactoredASRConfig().blank_token_id

    def make(num_frames: int, num_labels: int) -> tuple[Tensor, Tensor, Tensor]:
        shape = (recipe.batch_size, num_frames)
        logits = torch.randn(*shape, num_labels + 1, blank + 1, device=recipe.device, requires_grad=True)
        labels = torch.randint(1, blank, (recipe.batch_size, num_labels), device=recipe.device)
        return logits, labels, torch.ones(shape, dtype=torch.bool, device=recipe.device)

    run = {"fused": fused_loss, "unfused": unfused_loss}[kernel]
    run(*make(2, 1), blank).backward()
    given = make(int(recipe.seconds * FRAMES_PER_SECOND), max(int(recipe.seconds * LABELS_PER_SECOND), 1))
    return peak_during(lambda: run(*given, blank).backward(), recipe.device)


def fused_loss(logits: Tensor, labels: Tensor, mask: Tensor, blank: int) -> Tensor:
    """What is trained with."""
    return transducer_loss(logits, labels, mask, blank)


def unfused_loss(logits: Tensor, labels: Tensor, mask: Tensor, blank: int) -> Tensor:
    """The same from log-probabilities of the size of the logits."""
    lengths = mask.sum(dim=1).int(), torch.full((len(labels),), labels.shape[1], dtype=torch.int32, device=mask.device)
    losses = rnnt_loss(
        logits.log_softmax(dim=-1), labels.int(), *lengths, blank=blank, reduction="sum", fused_log_softmax=False
    )
    return losses / labels.numel()


def benchmark_transducer_memory(recipe: RecipeArguments) -> list[dict]:
    megabytes = {kernel: measure_peak(transducer_peak, kernel, recipe) for kernel in ("unfused", "fused")}
    return [
        {
            "name": "transducer_loss_unfused_vs_fused_memory",
            "ratio": round(megabytes["unfused"] / megabytes["fused"], 4),
            "megabytes": {kernel: round(value, 1) for kernel, value in megabytes.items()},
            "setting": f"{recipe.batch_size} x {recipe.seconds:g} s, 641 symbols, {_machine(recipe)}",
        }
    ]


def benchmark_inference(recipe: RecipeArguments) -> list[dict]:
    entries = []
    for encoder in recipe.encoders:
        candidates = {
            name: greedy_search(build_model(encoder, recipe, factorize), recipe)
            for name, factorize in (("full", True), ("baseline", False))
        }
        seconds = side_by_side(candidates, recipe.rounds, recipe.device)
        name = f"inference_full_vs_baseline_{encoder}"
        entries.append(compare(name, seconds, *candidates, _setting(recipe), target="at most 1.02"))
    return entries


def greedy_search(model: FactoredASRForRNNT, recipe: RecipeArguments) -> Callable[[], Tensor]:
    """Transcribe a batch with a model that writes blanks only, one for each frame."""
    model.eval()
    with torch.no_grad():
        model.joint.head.bias[model.config.blank_token_id] = 1e4
    batch = make_batch(model, recipe)
    return lambda: model.generate(batch["input_features"], batch["attention_mask"])


BENCHMARKS = {
    "training": benchmark_training,
    "contrast_memory": benchmark_contrast_memory,
    "transducer_memory": benchmark_transducer_memory,
    "inference": benchmark_inference,
}


def _machine(recipe: RecipeArguments) -> str:
    return f"{recipe.num_threads} thread(s)" if recipe.device == "cpu" else torch.cuda.get_device_name()


def _setting(recipe: RecipeArguments) -> str:
    return f"{recipe.size} size, {recipe.batch_size} x {recipe.seconds:g} s, {_machine(recipe)}"


def main(arguments: list[str] | None = None) -> list[dict]:
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    return run_benchmarks(BENCHMARKS, recipe, METHOD, arguments)


if __name__ == "__main__":
    main()
