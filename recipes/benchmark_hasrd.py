"""
Measure HASRD's convolutional codecs against Transformers' DAC of the paper's baseline, side by side (Table 1).

    python recipes/benchmark_hasrd.py

Hardware: one core of a quiet machine (or `--device cuda`), 16 GB of memory, Linux; about 10 minutes. Stored under
"benchmarks" in `hub_cards/results/hasrd.json`. How it is measured: see `recipes/benchmark_stable_token.py`. Weights
are random, the models have the paper's sizes, audio is noise. Features are part of ours.

* `codec_dac_vs_fbank_sepconv`, `codec_dac_vs_fbank`: encoding and decoding a segment of 5 s. Targets 3 and 2, the
  paper's "x3" and "x2" for inference on a CPU.
* `encoder_dac_vs_fbank_sepconv`, `decoder_dac_vs_fbank_sepconv`: the two halves, each alone.
* `training_memory_fbank_sepconv_vs_dac`, `training_memory_fbank_vs_dac`: peak of the codec's forward and backward pass
  above its weights, at the same batch. Target 0.75, the paper's "-25%".
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from count_hasrd import bare_config
from measurement import compare, make_waveforms, measure_peak, peak_during, run_benchmarks, side_by_side
from torch import Tensor, nn
from transformers import DacConfig, DacModel, HfArgumentParser

from clearspeech import HasrdModel
from clearspeech.processing.feature_extraction_best_rq import BestRQFeatureExtractor

METHOD = "hasrd"
SAMPLING_RATE = 16000
DAC, FBANK, SEPARABLE = "dac", "fbank", "fbank_sepconv"
TEST_DAC = dict(encoder_hidden_size=4, decoder_hidden_size=32, codebook_size=16, n_codebooks=2)
TEST_ENCODER = dict(hidden_size=16, conv_channels=(8, 8, 16))
TEST_CODEC = dict(decoder_channels=32, codebook_size=16, num_acoustic_books=2)


@dataclass
class RecipeArguments:
    size: str = field(default="paper", metadata={"help": "Of the models.", "choices": ["paper", "test"]})
    only: list[str] = field(default_factory=list, metadata={"help": "Parts to run, all when empty: see BENCHMARKS."})
    seconds: float = field(default=5.0, metadata={"help": '"random 5-second segments"'})
    batch_size: int = field(default=2, metadata={"help": "Segments in a training batch."})
    rounds: int = field(default=9, metadata={"help": "Turns of each candidate."})
    device: str = field(default="cpu", metadata={"help": "cpu or cuda."})
    num_threads: int = field(default=1, metadata={"help": "Of torch on the CPU."})
    results: str = field(default=f"hub_cards/results/{METHOD}.json", metadata={"help": "JSON file to add to."})


def build_model(name: str, recipe: RecipeArguments) -> nn.Module:
    """A codec with random weights."""
    is_test = recipe.size == "test"
    if name == DAC:
        return DacModel(DacConfig(**(TEST_DAC if is_test else {}))).to(recipe.device)
    fields = bare_config(separable=name == SEPARABLE).to_dict()
    if is_test:
        fields |= TEST_CODEC | {"encoder_config": fields["encoder_config"] | TEST_ENCODER}
    return HasrdModel(HasrdModel.config_class(**fields)).to(recipe.device)


def make_inputs(name: str, batch_size: int, recipe: RecipeArguments) -> Callable[[], dict[str, Tensor]]:
    """What a codec reads, computed anew at each call: ours has features."""
    waveforms = make_waveforms(batch_size, int(recipe.seconds * SAMPLING_RATE))
    if name == DAC:
        return lambda: {"input_values": waveforms[:, None].to(recipe.device)}
    extractor, rows = BestRQFeatureExtractor(), list(waveforms.numpy())
    return lambda: extractor(rows, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(recipe.device)


def halves(name: str, recipe: RecipeArguments) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Encoding of a segment to codes, and decoding of such codes."""
    model, inputs = build_model(name, recipe).eval(), make_inputs(name, 1, recipe)

    @torch.no_grad()
    def encode() -> Tensor:
        return model.encode(**inputs()).audio_codes

    codes = encode()

    @torch.no_grad()
    def decode() -> Tensor:
        return model.decode(audio_codes=codes).audio_values

    return encode, decode


def benchmark_inference(recipe: RecipeArguments) -> list[dict]:
    candidates = {}
    for name in (DAC, FBANK, SEPARABLE):
        encode, decode = halves(name, recipe)
        candidates |= {f"{name} encoder": encode, f"{name} decoder": decode}
    seconds = side_by_side(candidates, recipe.rounds, recipe.device)
    whole = {}
    for name in (DAC, FBANK, SEPARABLE):
        pairs = zip(seconds[f"{name} encoder"], seconds[f"{name} decoder"], strict=True)
        whole[name] = [encoding + decoding for encoding, decoding in pairs]
    setting = _setting(1, recipe)
    return [
        compare(f"codec_{DAC}_vs_{SEPARABLE}", whole, DAC, SEPARABLE, setting, target="at least 3"),
        compare(f"codec_{DAC}_vs_{FBANK}", whole, DAC, FBANK, setting, target="at least 2"),
        *(
            compare(f"{half}_{DAC}_vs_{name}", seconds, f"{DAC} {half}", f"{name} {half}", setting)
            for half in ("encoder", "decoder")
            for name in (SEPARABLE, FBANK)
        ),
    ]


def training_peak(name: str, recipe: RecipeArguments) -> float:
    """Megabytes of a codec's forward and backward pass, above its weights; runs in a process of its own."""
    torch.set_num_threads(recipe.num_threads)
    model = build_model(name, recipe).train()

    def run(batch: dict[str, Tensor]):
        output = model(**batch)
        loss = output.audio_values.square().mean()
        (loss + (output.loss if name == DAC else output.commitment_loss + output.codebook_loss).sum()).backward()

    seconds, recipe.seconds = recipe.seconds, 0.1
    run(make_inputs(name, 1, recipe)())  # what a first call loads is not the segments'
    recipe.seconds = seconds
    batch = dict(make_inputs(name, recipe.batch_size, recipe)())
    return peak_during(lambda: run(batch), recipe.device)


def benchmark_training_memory(recipe: RecipeArguments) -> list[dict]:
    megabytes = {name: measure_peak(training_peak, name, recipe) for name in (DAC, FBANK, SEPARABLE)}
    return [
        {
            "name": f"training_memory_{name}_vs_{DAC}",
            "ratio": round(megabytes[name] / megabytes[DAC], 4),
            "target": "at most 0.75",
            "megabytes": {each: round(megabytes[each], 1) for each in (name, DAC)},
            "setting": _setting(recipe.batch_size, recipe),
        }
        for name in (SEPARABLE, FBANK)
    ]


BENCHMARKS = {"inference": benchmark_inference, "training_memory": benchmark_training_memory}


def _setting(batch_size: int, recipe: RecipeArguments) -> str:
    machine = f"{recipe.num_threads} thread(s)" if recipe.device == "cpu" else torch.cuda.get_device_name()
    return f"{recipe.size} size, {batch_size} x {recipe.seconds:g} s, {machine}"


def main(arguments: list[str] | None = None) -> list[dict]:
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    return run_benchmarks(BENCHMARKS, recipe, METHOD, arguments)


if __name__ == "__main__":
    main()
