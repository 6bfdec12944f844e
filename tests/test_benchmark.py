"""Questions to the benchmark and count recipes: they run on tiny sizes and store what they say. Never a timing."""

import json
from pathlib import Path

import pytest
import torch

RECIPES = Path(__file__).parents[1] / "recipes"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)  # fresh processes for the memory find it there, too
    import benchmark_stable_token

    threads = torch.get_num_threads()
    yield benchmark_stable_token
    torch.set_num_threads(threads)


@pytest.fixture
def latent_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import benchmark_disentangled_whisper

    threads = torch.get_num_threads()
    yield benchmark_disentangled_whisper
    torch.set_num_threads(threads)


@pytest.fixture
def lm_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import benchmark_speech_lm

    threads = torch.get_num_threads()
    yield benchmark_speech_lm
    torch.set_num_threads(threads)


@pytest.fixture
def factored_benchmark(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import benchmark_factored_asr

    threads = torch.get_num_threads()
    yield benchmark_factored_asr
    torch.set_num_threads(threads)


@pytest.fixture
def counts(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import count_stable_token

    return count_stable_token


def run(recipe, tmp_path, *arguments: str) -> dict[str, dict]:
    """The entries that a run on a tiny model stores, by their names."""
    path = tmp_path / "results.json"
    tiny = ["--shape", "test", "--seconds", "0.4", "--batch_size", "2", "--rounds", "2"]
    recipe.main([*tiny, "--results", str(path), *arguments])
    return {entry["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}


def test_every_ratio_is_stored_with_its_command_and_setting(benchmark, tmp_path):
    entries = run(benchmark, tmp_path, "--only", "tokenization", "real_length", "training", "perturbation")
    assert set(entries) == {
        "tokenize_vs_encoder",
        "padding_to_30_s_vs_real_length",
        "training_step_vs_asr_step",
        "training_step_vs_whisper_step_same_frames",
        "training_step_vs_whisper_step_same_utterances",
        "perturbation_real_time_factor",
    }
    for entry in entries.values():
        assert entry["ratio"] > 0
        assert entry["setting"]
        assert entry["command"].startswith("python recipes/benchmark_stable_token.py --shape test")


@pytest.mark.slow
def test_memory_is_measured_in_fresh_processes(benchmark, tmp_path):
    large_enough_to_see = ["--seconds", "4", "--minutes", "0.1", "0.2"]
    entries = run(benchmark, tmp_path, "--only", "entropy", "memory", *large_enough_to_see)
    assert entries["entropy_full_vs_factorised_memory"]["ratio"] > 1
    assert set(entries["peak_memory_0.2_vs_0.1_minutes"]["megabytes"]) == {"0.1 minutes", "0.2 minutes"}


def test_what_stands_side_by_side_takes_turns(benchmark):
    calls = []
    candidates = {name: lambda name=name: calls.append(name) for name in "ab"}
    seconds = benchmark.side_by_side(candidates, rounds=3, device="cpu")
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"  # once to warm up, then every other round backwards
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_the_bare_encoder_computes_what_the_tokenizer_pools(benchmark):
    torch.manual_seed(0)
    model = benchmark.StableTokenModel(benchmark.build_config("test")).eval()
    features = torch.randn(2, model.config.num_mel_bins, 40)
    with torch.no_grad():
        pooled, _ = model.pooled_states(features, None)
        bare = benchmark.bare_encoder(model, features)
    torch.testing.assert_close(bare.unflatten(1, (-1, model.config.pooling_size)).mean(dim=2), pooled)


def test_both_entropies_are_equal(benchmark):
    projections = 0.02 * torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3])
    full, factorised = (entropy(projections, mask) for entropy in benchmark.ENTROPIES.values())
    torch.testing.assert_close(full, factorised, atol=1e-4, rtol=1e-4)


def test_an_unknown_part_is_refused_by_name(benchmark, tmp_path):
    with pytest.raises(ValueError, match="tokenization, real_length.*got sorting"):
        run(benchmark, tmp_path, "--only", "sorting")


@pytest.mark.parametrize("num_voters", [1, 3, 5, 7])
def test_table_12_is_met_to_the_printed_digit(counts, num_voters):
    row = counts.count_row(num_voters)
    assert round(row["parameters"] / 1e6, 3) == row["paper"]
    assert round(row["operations"] / 1e9, 3) == row["paper_operations_g"]


def test_counts_are_stored(counts, tmp_path):
    path = tmp_path / "results.json"
    counts.main(["--results", str(path)])
    rows = {row["name"]: row for row in json.loads(path.read_text())["counts"]}
    assert rows["whisper-large-v3, N=5"]["parameters"] == 320_327_745


def test_disentangled_whispers_ratios_and_counts_are_stored(latent_benchmark, tmp_path):
    entries = run(latent_benchmark, tmp_path)
    strategies = [f"bottleneck_vs_encoder_{strategy}" for strategy in ("MR", "CC", "TR")]
    assert set(entries) == {*strategies, "step_with_kept_states_vs_computed"}
    for entry in entries.values():
        assert entry["ratio"] > 0 and entry["setting"].startswith("test shape, N_CB=1024, 2 x 0.4 s")
    counts = {row["name"]: row for row in json.loads((tmp_path / "results.json").read_text())["counts"]}
    assert list(counts) == [f"whisper-medium, {name}" for name in ("MR", "MC", "CR", "CC", "TR", "TC")]
    whisper = {row["parameters"] - row["trainable_parameters"] for row in counts.values()}
    assert len(whisper) == 1 and 760e6 < whisper.pop() < 770e6  # whisper-medium, frozen in all of them


def test_what_is_timed_with_kept_states_is_what_is_timed_without(latent_benchmark):
    recipe = latent_benchmark.RecipeArguments(shape="test", seconds=0.4, batch_size=2)
    torch.manual_seed(0)
    model = latent_benchmark.build_model("test", "mean", "repeat").eval()
    computed, kept = latent_benchmark.both_batches(model, recipe)
    features, mask = latent_benchmark.StableTokenFeatureExtractor(feature_size=16).extract(
        computed["waveforms"], computed["num_samples"]
    )
    torch.testing.assert_close(model.model.encoder_states(features, mask), kept["encoder_states"])


def run_lm(recipe, tmp_path, *arguments: str) -> dict[str, dict]:
    """As `run`, of SpeechLM."""
    path = tmp_path / "results.json"
    tiny = ["--shapes", "test", "--rounds", "2", "--frames", "600", "--clusters", "10"]
    recipe.main([*tiny, "--results", str(path), *arguments])
    return {entry["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}


def test_speech_lms_ratios_are_stored(lm_benchmark, tmp_path):
    entries = run_lm(lm_benchmark, tmp_path, "--only", "training", "generation", "kmeans")
    assert set(entries) == {
        "sld_step_vs_loss_masking_step_test",
        "generation_one_by_one_vs_batched",
        "kmeans_real_time_factor",
    }
    for entry in entries.values():
        assert entry["setting"] and entry["command"].startswith("python recipes/benchmark_speech_lm.py --shapes test")
    assert entries["sld_step_vs_loss_masking_step_test"]["ratio"] > 0
    assert set(entries["generation_one_by_one_vs_batched"]["tokens_per_second"]) == {"one_by_one", "batched"}


@pytest.mark.slow
def test_speech_lms_memory_is_measured_in_fresh_processes(lm_benchmark, tmp_path):
    large_enough_to_see = ["--shapes", "mini", "--clusters", "100", "--frames", "8000"]
    entries = run_lm(lm_benchmark, tmp_path, "--only", "training_memory", "kmeans_memory", *large_enough_to_see)
    assert 0.9 < entries["sld_step_vs_loss_masking_step_mini_memory"]["ratio"] < 1.2
    assert 0.8 < entries["kmeans_memory_4_times_the_corpus"]["ratio"] < 1.5


def test_both_steps_train_the_same_model_on_their_own_loss(lm_benchmark, monkeypatch):
    losses = {}
    original = lm_benchmark.SpeechLMTrainer.compute_loss

    def compute_loss(trainer, *args, **kwargs):
        losses[trainer.args.speech_loss] = original(trainer, *args, **kwargs)
        return losses[trainer.args.speech_loss]

    monkeypatch.setattr(lm_benchmark.SpeechLMTrainer, "compute_loss", compute_loss)
    steps = lm_benchmark.training_steps("test", ("sld", "none"), lm_benchmark.RecipeArguments())
    for step in steps.values():
        step()
    assert losses["sld"] > 1.5 * losses["none"]  # units have a cross-entropy, too


def test_an_unknown_shape_is_refused_by_name(lm_benchmark):
    with pytest.raises(ValueError, match="test, mini, gpt2; got gpt7"):
        lm_benchmark.RecipeArguments(shapes=["gpt7"])


def run_factored(recipe, tmp_path, *arguments: str) -> dict[str, dict]:
    """As `run`, of FactoredASR."""
    path = tmp_path / "results.json"
    recipe.main(["--size", "test", "--seconds", "1", "--rounds", "2", "--results", str(path), *arguments])
    return {entry["name"]: entry for entry in json.loads(path.read_text())["benchmarks"]}


def test_factored_asrs_ratios_are_stored(factored_benchmark, tmp_path):
    entries = run_factored(factored_benchmark, tmp_path, "--only", "training", "inference")
    names = ("training_step_full_vs_baseline", "inference_full_vs_baseline")
    assert set(entries) == {f"{name}_{encoder}" for name in names for encoder in ("lstm", "conformer")}
    for entry in entries.values():
        assert entry["ratio"] > 0
        assert entry["setting"] and entry["command"].startswith("python recipes/benchmark_factored_asr.py --size test")


@pytest.mark.slow
def test_factored_asrs_memory_is_measured_in_fresh_processes(factored_benchmark, tmp_path):
    entries = run_factored(factored_benchmark, tmp_path, "--only", "contrast_memory", "transducer_memory")
    assert entries["contrast_memory_30_vs_5_seconds"]["ratio"] < 6.6  # linear in the length
    assert entries["transducer_loss_unfused_vs_fused_memory"]["ratio"] > 1


def test_both_transducer_losses_are_equal(factored_benchmark):
    logits, labels = torch.randn(2, 7, 4, 10), torch.randint(1, 9, (2, 3))
    given = logits, labels, torch.ones(2, 7, dtype=torch.bool), 9
    torch.testing.assert_close(factored_benchmark.fused_loss(*given), factored_benchmark.unfused_loss(*given))


@pytest.mark.parametrize("factorize", [True, False])
def test_what_is_searched_writes_one_blank_for_each_frame(factored_benchmark, factorize):
    recipe, steps = factored_benchmark.RecipeArguments(size="test", seconds=1.0), []
    model = factored_benchmark.build_model("lstm", recipe, factorize)
    model.decoder.register_forward_hook(lambda *given: steps.append(given))
    for unused in (model.context_network, model.reconstruction) if factorize else ():
        unused.register_forward_hook(lambda *given: pytest.fail("has run"))
    assert factored_benchmark.greedy_search(model, recipe)().numel() == 0
    assert len(steps) == 33


@pytest.mark.slow
def test_the_papers_transducers_have_its_sizes(monkeypatch):
    monkeypatch.syspath_prepend(RECIPES)
    import count_factored_asr

    counted = {
        row["name"]: row for encoder in ("RNN-T", "Conformer") for row in count_factored_asr.count_model(encoder)
    }
    short = ", prediction network of one layer"  # with which the Conformer has what the paper prints
    for name in ("RNN-T, Baseline", f"Conformer, Baseline{short}"):
        assert counted[name]["parameters"] == pytest.approx(1e6 * counted[name]["paper"], rel=0.03)
    assert counted["Conformer, Baseline"]["parameters"] == pytest.approx(127.3e6, rel=0.001)
