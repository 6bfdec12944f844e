"""What the benchmark recipes measure with: times of candidates that take turns, peak memory of a fresh process."""

import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperConfig

from clearspeech.trainers.results import update_results

SHAPES = {  # width, encoder and decoder layers, attention heads, mel bins, vocabulary
    "test": (32, 2, 2, 16, 31),
    "mini": (192, 4, 4, 80, 31),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "medium": (1024, 24, 16, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}


def whisper_of_shape(shape: str) -> WhisperConfig:
    """A Whisper of a named size."""
    dim, layers, heads, mel_bins, vocabulary = SHAPES[shape]
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=mel_bins,
        d_model=dim,
        encoder_layers=layers,
        decoder_layers=layers,
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=4 * dim,
        decoder_ffn_dim=4 * dim,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=0,
        decoder_start_token_id=1,
    )


def make_waveforms(batch: int, num_samples: int) -> Tensor:
    """Seeded noise `(batch, samples)`: none of the costs depends on what is said."""
    return 0.1 * torch.randn(batch, num_samples, generator=torch.Generator().manual_seed(0))


def run_benchmarks(
    benchmarks: dict[str, Callable[..., list[dict]]], recipe, method: str, arguments: list[str] | None
) -> list[dict]:
    """
    Run the parts that `recipe.only` names (all when it is empty), print their entries, store them in `recipe.results`.

    Raises:
        ValueError: an unknown part.
    """
    unknown = set(recipe.only) - set(benchmarks)
    if unknown:
        raise ValueError(f"--only takes {', '.join(benchmarks)}; got {', '.join(sorted(unknown))}.")
    torch.set_num_threads(recipe.num_threads)
    command = " ".join([f"python recipes/benchmark_{method}.py", *(sys.argv[1:] if arguments is None else arguments)])
    entries = []
    for name in recipe.only or benchmarks:
        print(f"{name} ...", flush=True)
        torch.manual_seed(0)
        for entry in benchmarks[name](recipe):
            entries.append({**entry, "command": command})
            details = {key: entry[key] for key in ("target", "seconds", "megabytes", "each") if key in entry}
            print(f"  {entry['name']:48} {entry['ratio']:10.3f}   {details}\n    {entry['setting']}", flush=True)
    update_results(recipe.results, method, benchmarks=entries)
    return entries


def seconds_of(function: Callable[[], object], device: str) -> float:
    """Time of one call: CPU seconds of this process, or seconds on the wall until the GPU is done."""
    if device == "cpu":
        start = time.process_time()
        function()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(candidates: dict[str, Callable[[], object]], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of each candidate in each round, after one call of each to warm up; every other round backwards."""
    seconds = {name: [] for name in candidates}
    for function in candidates.values():
        function()
    for turn in range(rounds):
        for name in list(candidates)[:: 1 if turn % 2 == 0 else -1]:
            seconds[name].append(seconds_of(candidates[name], device))
    return seconds


def compare(name: str, seconds: dict[str, list[float]], first: str, second: str, setting: str, **fields) -> dict:
    """The entry that says how many times as long `first` takes as `second`."""
    ratios = [a / b for a, b in zip(seconds[first], seconds[second], strict=True)]
    medians = {candidate: round(statistics.median(seconds[candidate]), 5) for candidate in (first, second)}
    return {
        "name": name,
        "ratio": round(statistics.median(ratios), 4),
        **fields,
        "seconds": medians,
        "rounds": len(ratios),
        "setting": setting,
    }


def measure_peak(function: Callable, *arguments) -> float:
    """Megabytes that `function(*arguments)`, a function of a module's top level, says it took, in a fresh process."""
    os.environ.setdefault("MALLOC_MMAP_THRESHOLD_", str(2**20))  # glibc then returns large tensors when they are freed
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_during(function: Callable[[], object], device: str) -> float:
    """Megabytes by which `function()` rises above what the process holds now (resident or on a GPU) at its peak."""
    if device != "cpu":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux forgets the peak so far
    held = _resident_kilobytes("VmRSS")
    function()
    return (_resident_kilobytes("VmHWM") - held) / 2**10


def _resident_kilobytes(name: str) -> int:
    # not getrusage: its peak begins with that of the process this one was forked from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
