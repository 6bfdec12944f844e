"""
Measure what StableToken's parts cost, each as a ratio of two things run side by side.

    python recipes/benchmark_stable_token.py --dataset ../shared/data/an4

Hardware: one core of a quiet machine (or `--device cuda`), 6 GB of memory, Linux; about 10 minutes. Without
`--dataset` the utterances are the embedded corpus's. Stored under "benchmarks" in
`hub_cards/results/stable_token.json`.

Candidates take turns (A, B, B, A, ...) in one process; a ratio is the median over the rounds of A's time by B's in
the same round, so that other load on the machine hits both. On the CPU, time is the process's CPU time. Weights are
random in the shape of a Whisper. Peak memory is measured in a fresh process each, above what it held before.

* `tokenize_vs_encoder`: features to tokens, against the same convolutions and layers without masks. Target 1.03.
* `padding_to_30_s_vs_real_length`: audio to tokens for a batch of utterances, padded to 30 s against as long as the
  longest. Target at least 5.
* `training_step_vs_asr_step`: a step of `StableTokenTrainer` (both views, all losses), against a recognizer's step in
  which every layer sees just as many frames: the same model without its quantizer reads every utterance twice. What is
  left in the ratio is the noise, the voting and the losses; feature extraction is in both. Target 1.10.
* `training_step_vs_whisper_step_same_frames`, `..._same_utterances`: the same, against a plain Whisper's step (50 Hz
  all the way up) on twice as many utterances, as many frames as both views have, and on as many utterances.
* `entropy_full_vs_factorised_time`, `..._memory`: the codebook term, forward and backward, by a softmax over all codes
  against the factorised form. Both values are compared first.
* `perturbation_real_time_factor`: seconds of audio perturbed per second of one core. Target at least 100.
* `peak_memory_30_vs_0.5_minutes`: peak of audio to tokens, 30 minutes against half a minute; megabytes beside it.
"""

import random
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from measurement import (
    SHAPES,
    compare,
    make_waveforms,
    measure_peak,
    peak_during,
    run_benchmarks,
    side_by_side,
    whisper_of_shape,
)
from torch import Tensor, nn
from transformers import HfArgumentParser, PreTrainedModel, WhisperFeatureExtractor

from clearspeech import StableTokenConfig, StableTokenForConditionalGeneration, StableTokenModel
from clearspeech.modeling.quantization import VotingLFQOutput, codes_to_bits
from clearspeech.processing.audio_reading import SAMPLING_RATE
from clearspeech.processing.corpora import load_corpus
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.perturbation import KINDS, TRAINING_PERTURBATIONS, Perturber
from clearspeech.trainers.losses import batch_entropy, bit_entropy
from clearspeech.trainers.trainer_stable_token import StableTokenTrainer, StableTokenTrainingArguments


@dataclass
class RecipeArguments:
    dataset: str = field(default="embedded", metadata={"help": "Corpus whose test utterances are padded to 30 s."})
    shape: str = field(default="base", metadata={"help": "Whisper's size.", "choices": list(SHAPES)})
    only: list[str] = field(default_factory=list, metadata={"help": "Parts to run, all when empty: see BENCHMARKS."})
    seconds: float = field(default=10.0, metadata={"help": "Length of the synthetic utterances."})
    batch_size: int = field(default=4, metadata={"help": "Utterances in a batch."})
    rounds: int = field(default=15, metadata={"help": "Turns of each candidate; slow ones take a third of them."})
    minutes: list[float] = field(
        default_factory=lambda: [0.5, 5.0, 30.0], metadata={"help": "Lengths whose peak memory is measured."}
    )
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_threads: int = field(default=1, metadata={"help": "Of torch on the CPU."})
    results: str = field(default="hub_cards/results/stable_token.json", metadata={"help": "JSON file to add to."})


def build_config(shape: str, **overrides) -> StableTokenConfig:
    """A StableToken with the paper's quantizer in a Whisper of a named size."""
    return StableTokenConfig.from_whisper(whisper_of_shape(shape), **overrides)


def bare_encoder(model: StableTokenModel, input_features: Tensor) -> Tensor:
    """Whisper's convolutions, positions and the layers below the quantizer, nothing else."""
    encoder = model.encoder
    states = nn.functional.gelu(encoder.conv1(input_features))
    states = nn.functional.gelu(encoder.conv2(states)).transpose(1, 2)
    states = states + encoder.embed_positions.weight[: states.shape[1]]
    for layer in encoder.layers:
        states = layer(states, None)
    return states


@torch.no_grad()
def benchmark_tokenization(recipe: RecipeArguments) -> list[dict]:
    config = build_config(recipe.shape)
    model = StableTokenModel(config).to(recipe.device).eval()
    features = torch.randn(recipe.batch_size, config.num_mel_bins, int(recipe.seconds * 100), device=recipe.device)
    mask = torch.ones(features.shape[::2], dtype=torch.long, device=recipe.device)
    candidates = {
        "tokenize": lambda: model.encode(features, mask),
        "encoder": lambda: bare_encoder(model, features),
    }
    seconds = side_by_side(candidates, recipe.rounds, recipe.device)
    return [compare("tokenize_vs_encoder", seconds, *candidates, _setting(recipe), target="at most 1.03")]


@torch.no_grad()
def benchmark_real_length(recipe: RecipeArguments) -> list[dict]:
    config = build_config(recipe.shape)
    model = StableTokenModel(config).to(recipe.device).eval()
    extractor = StableTokenFeatureExtractor(feature_size=config.num_mel_bins)
    padding_extractor = WhisperFeatureExtractor(feature_size=config.num_mel_bins)
    test = load_corpus(recipe.dataset, "test")
    rows = random.Random(0).sample(range(len(test)), recipe.batch_size)
    speech = [test[row]["audio"] for row in rows]

    def real_length():
        features = extractor(speech, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(recipe.device)
        return model.encode(**features)

    def padded():
        features = padding_extractor(speech, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(recipe.device)
        return model.encode(features.input_features)

    candidates = {"padded_to_30_s": padded, "real_length": real_length}
    seconds = side_by_side(candidates, -(-recipe.rounds // 3), recipe.device)
    lengths = sorted(len(waveform) / SAMPLING_RATE for waveform in speech)
    setting = (
        f"{recipe.shape} shape, {len(speech)} utterances of {recipe.dataset} in a batch, "
        f"{lengths[0]:.1f} to {lengths[-1]:.1f} s, features included, {_machine(recipe)}"
    )
    return [compare("padding_to_30_s_vs_real_length", seconds, *candidates, setting, target="at least 5")]


class BothViewsAveraged(nn.Module):
    """In the quantizer's place: passes on the mean of the two views, so that both are trained through."""

    def forward(self, states: Tensor, second_view: Tensor | None = None, noisy_voters: Tensor | None = None):
        states = states if second_view is None else (states + second_view) / 2
        codes = torch.zeros(states.shape[:2], dtype=torch.long, device=states.device)
        return VotingLFQOutput(states, codes, None, None)


def training_batch(recipe: RecipeArguments, batch: int, vocabulary: int) -> dict[str, Tensor]:
    """What the collator gives: waveforms and 4 label ids per second."""
    num_samples = int(recipe.seconds * SAMPLING_RATE)
    labels = torch.randint(2, vocabulary, (batch, max(int(4 * recipe.seconds), 1)))
    tensors = {
        "waveforms": make_waveforms(batch, num_samples),
        "num_samples": torch.full((batch,), num_samples),
        "labels": labels,
        "seeds": torch.arange(batch),
    }
    return {name: values.to(recipe.device) for name, values in tensors.items()}


def optimizer_step(model: PreTrainedModel, compute_loss: Callable[[], Tensor]) -> Callable[[], None]:
    """A step of AdamW on a loss, as in the paper: clipped to norm 1."""
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()

    def step():
        optimizer.zero_grad()
        compute_loss().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def stable_token_step(recipe: RecipeArguments) -> Callable[[], None]:
    """Perturbation, both views, all four losses, through `StableTokenTrainer`."""
    model = StableTokenForConditionalGeneration(build_config(recipe.shape))
    extractor = StableTokenFeatureExtractor(feature_size=model.config.num_mel_bins)
    with tempfile.TemporaryDirectory() as folder:
        arguments = StableTokenTrainingArguments(folder, report_to=[], use_cpu=recipe.device == "cpu")
        perturber = Perturber(TRAINING_PERTURBATIONS, list(make_waveforms(5, 5 * SAMPLING_RATE)))
        trainer = StableTokenTrainer(model, arguments, feature_extractor=extractor, perturber=perturber)
    trainer.current_gradient_accumulation_steps = 1
    batch = training_batch(recipe, recipe.batch_size, model.config.vocab_size)
    counts = {"labels": batch["labels"].numel(), "frames": trainer.count_frames(batch["num_samples"]).sum()}
    return optimizer_step(model, lambda: trainer.compute_loss(model, batch, num_items_in_batch=counts))


def recognizer_step(recipe: RecipeArguments, batch_size: int, both_views: bool, **overrides) -> Callable[[], None]:
    """Cross-entropy only, without a quantizer; with `both_views` the lower layers read every utterance twice."""
    model = StableTokenForConditionalGeneration(build_config(recipe.shape, **overrides))
    model.model.quantizer = BothViewsAveraged()
    model.to(recipe.device)
    extractor = StableTokenFeatureExtractor(feature_size=model.config.num_mel_bins)
    batch = training_batch(recipe, batch_size, model.config.vocab_size)
    no_voters = torch.zeros(model.config.num_voters, dtype=torch.bool, device=recipe.device)

    def compute_loss() -> Tensor:
        features, mask = extractor.extract(batch["waveforms"], batch["num_samples"])
        second = {}
        if both_views:
            again, _ = extractor.extract(batch["waveforms"], batch["num_samples"])
            second = {"perturbed_input_features": again, "noisy_voters": no_voters}
        return model(features, mask, labels=batch["labels"], **second).loss

    return optimizer_step(model, compute_loss)


def benchmark_training(recipe: RecipeArguments) -> list[dict]:
    whisper = dict(both_views=False, pooling_size=1)  # 50 Hz in every layer
    candidates = {
        "stable_token": stable_token_step(recipe),
        "asr": recognizer_step(recipe, recipe.batch_size, both_views=True),
        "whisper_same_frames": recognizer_step(recipe, 2 * recipe.batch_size, **whisper),
        "whisper_same_utterances": recognizer_step(recipe, recipe.batch_size, **whisper),
    }
    seconds = side_by_side(candidates, -(-recipe.rounds // 3), recipe.device)
    entries = [("training_step_vs_asr_step", "asr", {"target": "at most 1.10"})]
    entries += [(f"training_step_vs_{name.replace('_', '_step_', 1)}", name, {}) for name in list(candidates)[2:]]
    return [
        compare(name, seconds, "stable_token", other, _setting(recipe), **target) for name, other, target in entries
    ]


def full_softmax_entropy(projections: Tensor, mask: Tensor, temperature: float = 0.01) -> Tensor:
    """Entropy per frame minus entropy of the mean, in nats, from the assignment to all `2**bits` codes."""
    bits = projections.shape[-1]
    codes = codes_to_bits(torch.arange(2**bits, device=projections.device), bits)
    log_probabilities = (2 * projections[:, mask] @ codes.T / temperature).log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    mean = probabilities.mean(dim=1)
    per_frame = -(probabilities * log_probabilities).sum(dim=-1).mean()
    return per_frame + (mean * mean.clamp_min(1e-12).log()).sum(dim=-1).mean()


def factorised_entropy(projections: Tensor, mask: Tensor, temperature: float = 0.01) -> Tensor:
    """The same by the suite's losses."""
    return bit_entropy(projections, mask, temperature) - batch_entropy(projections, mask, temperature)


ENTROPIES = {"full": full_softmax_entropy, "factorised": factorised_entropy}


def entropy_inputs(recipe: RecipeArguments) -> tuple[Tensor, Tensor]:
    """Projections of five voters `(voters, batch, frames, bits)` as large as at the start of training, and a mask."""
    config = build_config(recipe.shape)
    frames = int(recipe.seconds * 25)
    shape = (config.num_voters, recipe.batch_size, frames, config.num_bits)
    projections = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(recipe.batch_size, frames, dtype=torch.bool, device=recipe.device)
    return projections.to(recipe.device).requires_grad_(), mask


def entropy_peak(name: str, recipe: RecipeArguments) -> float:
    """Megabytes of one entropy's forward and backward pass; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)
    projections, mask = entropy_inputs(recipe)
    ENTROPIES[name](projections[:, :1, :2], mask[:1, :2]).backward()  # what a first call loads is not the entropy's
    return peak_during(lambda: ENTROPIES[name](projections, mask).backward(), recipe.device)


def benchmark_entropy(recipe: RecipeArguments) -> list[dict]:
    projections, mask = entropy_inputs(recipe)
    values = {name: entropy(projections, mask).item() for name, entropy in ENTROPIES.items()}
    if abs(values["full"] - values["factorised"]) > 1e-3:
        raise ValueError(f"the two entropies should be equal; got {values}.")
    candidates = {
        name: lambda entropy=entropy: entropy(projections, mask).backward() for name, entropy in ENTROPIES.items()
    }
    seconds = side_by_side(candidates, -(-recipe.rounds // 3), recipe.device)
    voters, batch, frames, bits = projections.shape
    setting = f"{voters} voters x {batch * frames} frames x {bits} bits, forward and backward, {_machine(recipe)}"
    megabytes = {name: measure_peak(entropy_peak, name, recipe) for name in ENTROPIES}
    memory = {
        "name": "entropy_full_vs_factorised_memory",
        "ratio": round(megabytes["full"] / megabytes["factorised"], 2),
        "megabytes": {name: round(value, 1) for name, value in megabytes.items()},
        "setting": setting,
    }
    return [compare("entropy_full_vs_factorised_time", seconds, *candidates, setting), memory]


def benchmark_perturbation(recipe: RecipeArguments) -> list[dict]:
    num_samples = int(recipe.seconds * SAMPLING_RATE)
    waveforms, clips = make_waveforms(16, num_samples), list(make_waveforms(5, 5 * SAMPLING_RATE))
    lengths, seeds = [num_samples] * len(waveforms), list(range(len(waveforms)))

    def factor(kinds: tuple[str, ...]) -> float:
        rows = [row for row in TRAINING_PERTURBATIONS if row.kind in kinds]
        perturber = Perturber(rows, clips)
        seconds = side_by_side({"": lambda: perturber(waveforms, lengths, seeds)}, recipe.rounds, "cpu")[""]
        return len(waveforms) * recipe.seconds / statistics.median(seconds)

    return [
        {
            "name": "perturbation_real_time_factor",
            "ratio": round(factor(KINDS), 1),
            "target": "at least 100",
            "each": {kind: round(factor((kind,)), 1) for kind in KINDS},
            "rounds": recipe.rounds,
            "setting": f"Table 9, {len(waveforms)} utterances of {recipe.seconds:g} s, one core",
        }
    ]


def tokenization_peak(minutes: float, recipe: RecipeArguments) -> float:
    """Megabytes of tokenizing one recording, audio not included; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)
    config = build_config(recipe.shape)
    model = StableTokenModel(config).to(recipe.device).eval()
    extractor = StableTokenFeatureExtractor(feature_size=config.num_mel_bins)
    waveform = make_waveforms(1, int(minutes * 60 * SAMPLING_RATE))[0].numpy()

    def tokenize() -> Tensor:
        features = extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt")
        return model.encode(**features.to(recipe.device)).audio_codes

    return peak_during(tokenize, recipe.device)


def benchmark_memory(recipe: RecipeArguments) -> list[dict]:
    megabytes = {minutes: measure_peak(tokenization_peak, minutes, recipe) for minutes in sorted(recipe.minutes)}
    shortest, longest = min(megabytes), max(megabytes)
    return [
        {
            "name": f"peak_memory_{longest:g}_vs_{shortest:g}_minutes",
            "ratio": round(megabytes[longest] / megabytes[shortest], 2),
            "megabytes": {f"{minutes:g} minutes": round(value, 1) for minutes, value in megabytes.items()},
            "setting": f"{recipe.shape} shape, features and tokens, above the model and the audio, {_machine(recipe)}",
        }
    ]


BENCHMARKS = {
    "tokenization": benchmark_tokenization,
    "real_length": benchmark_real_length,
    "training": benchmark_training,
    "entropy": benchmark_entropy,
    "perturbation": benchmark_perturbation,
    "memory": benchmark_memory,
}


def _machine(recipe: RecipeArguments) -> str:
    return f"{recipe.num_threads} thread(s)" if recipe.device == "cpu" else torch.cuda.get_device_name()


def _setting(recipe: RecipeArguments) -> str:
    return f"{recipe.shape} shape, N=5, 13 bits, {recipe.batch_size} x {recipe.seconds:g} s, {_machine(recipe)}"


def main(arguments: list[str] | None = None) -> list[dict]:
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    return run_benchmarks(BENCHMARKS, recipe, "stable_token", arguments)


if __name__ == "__main__":
    main()
