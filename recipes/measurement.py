"""What the benchmark recipes measure with: times of candidates that take turns, peak memory of a fresh process."""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch


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
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_during(function: Callable[[], object], device: str) -> float:
    """Megabytes by which `function()` raises a fresh process's peak above what it holds now (resident or on a GPU)."""
    if device != "cpu":
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return (torch.cuda.max_memory_allocated() - held) / 2**20
    held = _resident_kilobytes("VmRSS")
    function()
    return (_resident_kilobytes("VmHWM") - held) / 2**10


def _resident_kilobytes(name: str) -> int:
    # not getrusage: its peak begins with that of the process this one was forked from
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
