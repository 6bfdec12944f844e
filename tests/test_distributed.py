"""Questions to training in parts: micro-batches, two processes and DeepSpeed give what one big batch gives."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tiny_training import build_trainer, read_run, relative_difference, run_apart, save_text_model
from transformers import AutoModelForCausalLM

from clearspeech import (
    FactoredASRForRNNT,
    SpeechLMForCausalLM,
    StableTokenForConditionalGeneration,
    StableTokenModel,
)

ROOT = Path(__file__).parent.parent
METHODS = ["stable_token", "whisper_ctc", "disentangled_whisper", "speech_lm", "factored_asr"]
TOLERANCE = 1e-4
CONFIGURATIONS = ROOT / "recipes" / "accelerate"

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra `deepspeed`"
)


def assert_equal_runs(ours, reference):
    """Weights after five steps, and every logged loss."""
    weights, lines = read_run(ours)
    expected_weights, expected_lines = read_run(reference)
    assert relative_difference(weights, expected_weights) < TOLERANCE
    assert len(lines) == len(expected_lines) == 5
    for line, expected in zip(lines, expected_lines):
        assert line.keys() == expected.keys()
        for name in expected.keys() - {"epoch"}:
            assert line[name] == pytest.approx(expected[name], rel=TOLERANCE, abs=1e-6), name


@pytest.fixture(scope="module")
def one_batch(tmp_path_factory):
    """`one_batch(method, **arguments)`: the folder of five steps with batches of 8 in one process."""
    folders = {}

    def run(method, **arguments):
        key = (method, str(sorted(arguments.items())))
        if key not in folders:
            folders[key] = str(tmp_path_factory.mktemp("one_batch"))
            assert run_apart(method=method, output_dir=folders[key], num_rows=40, **arguments) == [0]
        return folders[key]

    return run


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_give_the_loss_and_weights_of_one(method, one_batch, tmp_path):
    """Batch entropy included: its mean distribution is summed over both processes, with gradients."""
    arguments = dict(method=method, output_dir=str(tmp_path), num_rows=40, per_device_train_batch_size=4)
    assert run_apart(2, **arguments) == [0, 0]
    assert_equal_runs(tmp_path, one_batch(method))


@pytest.mark.parametrize(
    "variant",
    [
        {"config_fields": {"bottleneck": "adapter", "noise_labels": []}},
        {"noise_weight": 0.0, "activation_checkpointing": True},  # with it, no parameter may go without a gradient
        {"clean_is_unknown": True, "fit_bottleneck_rows": 20},
        {"clean_is_unknown": True, "config_fields": {"noise_head_layers": 1}},
    ],
    ids=[
        "adapter",
        "noise head rests",
        "fitted first, clean speech in the noise head",
        "transformer in the noise head",
    ],
)
def test_two_processes_train_what_there_is_of_a_disentangled_whisper(variant, one_batch, tmp_path):
    arguments = dict(output_dir=str(tmp_path), num_rows=40, per_device_train_batch_size=4)
    assert run_apart(2, method="disentangled_whisper", **arguments, **variant) == [0, 0]
    assert_equal_runs(tmp_path, one_batch("disentangled_whisper", **variant))


def train_and_keep_the_codebook(output_dir: str, **arguments):
    trainer = build_trainer("disentangled_whisper", output_dir, **arguments)
    trainer.train()
    torch.save(trainer.model.model.quantizer.state_dict(), Path(output_dir, f"{trainer.args.process_index}.pt"))


def test_dead_codes_restart_from_the_same_frames_in_both_processes(tmp_path):
    """Each has frames of its own, and no buffer is sent from one to the other."""
    arguments = dict(num_rows=40, per_device_train_batch_size=4, ddp_broadcast_buffers=False)
    for threshold in (0.0, 1.0):
        folder = tmp_path / str(threshold)
        folder.mkdir()
        fields = dict(config_fields=dict(dead_code_threshold=threshold))
        assert run_apart(2, train_and_keep_the_codebook, output_dir=str(folder), **arguments, **fields) == [0, 0]
        first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert (first["sizes"].min() >= 1) == bool(threshold)  # only restarts keep them all there


def test_two_processes_agree_on_a_conv_transformer_bottleneck(one_batch, tmp_path):
    """Nothing in it has a gradient of mere rounding noise, which Adam would blow up."""
    fields = dict(config_fields=dict(downsampling="conv_transformer", upsampling="conv"))
    arguments = dict(method="disentangled_whisper", num_rows=40, per_device_train_batch_size=4, **fields)
    assert run_apart(2, output_dir=str(tmp_path), **arguments) == [0, 0]
    assert_equal_runs(tmp_path, one_batch("disentangled_whisper", **fields))


def test_two_processes_train_adapters_to_the_merged_weights_of_one(one_batch, tmp_path):
    text_model = save_text_model(tmp_path / "text")
    arguments = dict(method="speech_lm", text_model=text_model)
    output_dir = str(tmp_path / "trained")
    assert run_apart(2, output_dir=output_dir, num_rows=40, per_device_train_batch_size=4, **arguments) == [0, 0]
    assert_equal_runs(output_dir, one_batch(**arguments))


@pytest.mark.parametrize("method", METHODS)
def test_accumulated_micro_batches_give_the_loss_and_weights_of_one_batch(method, one_batch, tmp_path):
    """What is no sum over micro-batches is left out: batch entropy, averages that move once, negatives."""
    left_out = {
        "stable_token": {"batch_entropy_weight": 0.0},
        "disentangled_whisper": {"config_fields": {"codebook_decay": 1.0}},
        "factored_asr": {"contrast_weight": 0.0},  # its negatives come from one micro-batch
    }.get(method, {})
    arguments = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, **left_out)
    assert run_apart(method=method, output_dir=str(tmp_path), num_rows=40, **arguments) == [0]
    assert_equal_runs(tmp_path, one_batch(method, **left_out))


def test_micro_batches_of_batch_entropy_are_below_the_whole_batchs(one_batch, tmp_path):
    """What its documentation says: accumulate little, or know that the spread is taken per micro-batch."""
    arguments = dict(per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert run_apart(method="stable_token", output_dir=str(tmp_path), num_rows=40, **arguments) == [0]
    first, expected = read_run(tmp_path)[1][0], read_run(one_batch("stable_token"))[1][0]
    assert first["batch_entropy"] < expected["batch_entropy"]
    assert first["bit_entropy"] == pytest.approx(expected["bit_entropy"], rel=TOLERANCE)


@pytest.mark.parametrize("method", ["stable_token", "disentangled_whisper"])
def test_two_processes_resume_to_the_weights_of_an_uninterrupted_run(method, tmp_path):
    arguments = dict(method=method, per_device_train_batch_size=2, save_strategy="steps", save_steps=4, dropout=0.1)
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    assert run_apart(2, output_dir=whole, max_steps=6, **arguments) == [0, 0]  # 3 steps are an epoch
    assert run_apart(2, output_dir=stopped, max_steps=6, killed_after=5, **arguments) == [-9, -9]
    assert run_apart(2, output_dir=stopped, max_steps=6, resume=True, **arguments) == [0, 0]
    assert relative_difference(read_run(stopped)[0], read_run(whole)[0]) == 0.0


@pytest.mark.parametrize(("num_rows", "num_shards"), [(12, 2), (5, 1)])
def test_two_processes_train_on_a_stream_that_ends_before_max_steps(tmp_path, num_rows, num_shards):
    """Batches of different widths, and an uneven number of rows per process."""
    arguments = dict(method="stable_token", output_dir=str(tmp_path), per_device_train_batch_size=2)
    assert run_apart(2, num_rows=num_rows, num_shards=num_shards, **arguments) == [0, 0]
    assert [line["step"] for line in read_run(tmp_path)[1]] == [1, 2, 3, 4, 5]


def launch(config: Path, method: str, output_dir: Path, *arguments: str) -> int:
    """Five steps through `accelerate launch` with one of the recipes' configurations, on the CPU; the exit code."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    script = [str(ROOT / "tests" / "tiny_training.py"), method, str(output_dir), *arguments]
    command = [*launcher, "--config_file", str(config), *script, "--num_rows", "40"]
    command += ["--per_device_train_batch_size", "4"]
    return subprocess.run(command, cwd=ROOT, timeout=600).returncode


@pytest.mark.slow
def test_accelerate_launches_two_processes_on_the_cpu(tmp_path, one_batch):
    assert launch(CONFIGURATIONS / "cpu.yaml", "stable_token", tmp_path) == 0
    assert_equal_runs(tmp_path, one_batch("stable_token"))


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_zero2_trains_saves_and_reloads(tmp_path, one_batch):
    assert launch(CONFIGURATIONS / "zero2.yaml", "stable_token", tmp_path) == 0
    expected_folder = one_batch("stable_token")
    for line, expected in zip(read_run(tmp_path)[1], read_run(expected_folder)[1], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=TOLERANCE)
        assert line["learning_rate"] == pytest.approx(expected["learning_rate"], rel=1e-6)
    for kind in (StableTokenForConditionalGeneration, StableTokenModel):
        model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
        expected = kind.from_pretrained(expected_folder).state_dict()
        assert relative_difference(model.state_dict(), expected) < TOLERANCE
    assert model.encode(torch.randn(1, 16, 80)).audio_codes.shape == (1, 20)


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_zero2_trains_every_term_of_factored_asr(tmp_path, one_batch):
    """Reversed gradients, negatives from the other process, and reconstructors."""
    assert launch(CONFIGURATIONS / "zero2.yaml", "factored_asr", tmp_path) == 0
    for line, expected in zip(read_run(tmp_path)[1], read_run(one_batch("factored_asr"))[1], strict=True):
        for name in ("loss", "transducer", "ctc", "mi", "contrast"):
            assert line[name] == pytest.approx(expected[name], rel=TOLERANCE), name
    _, report = FactoredASRForRNNT.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))


@pytest.fixture
def zero3(tmp_path) -> Path:
    """The recipes' ZeRO-3, but weights are split up however small, and gone after each use, as in a large model."""
    content = json.loads((ROOT / "recipes" / "deepspeed" / "zero3.json").read_text())
    names = ("param_persistence_threshold", "max_live_parameters", "max_reuse_distance", "prefetch_bucket_size")
    content["zero_optimization"] |= {f"stage3_{name}": 0 for name in names}
    (tmp_path / "zero3.json").write_text(json.dumps(content))
    launcher = (CONFIGURATIONS / "zero3.yaml").read_text()
    (tmp_path / "zero3.yaml").write_text(launcher.replace("recipes/deepspeed/zero3.json", f"{tmp_path}/zero3.json"))
    return tmp_path / "zero3.yaml"


@pytest.mark.slow
@needs_deepspeed
def test_deepspeed_zero3_trains_adapters_is_killed_resumes_merges_and_reloads(tmp_path, one_batch, zero3):
    """Validation, where the second process has a batch less than the first, too; the last step is the best."""
    text_model, output_dir = save_text_model(tmp_path / "text"), tmp_path / "trained"
    arguments = ["--text_model", json.dumps(text_model), "--save_strategy", '"steps"', "--save_steps", "1"]
    arguments += ["--eval_strategy", '"steps"', "--eval_steps", "1", "--per_device_eval_batch_size", "1"]
    arguments += ["--load_best_model_at_end", "true"]
    assert launch(zero3, "speech_lm", output_dir, *arguments, "--killed_after", "4") != 0
    assert (output_dir / "checkpoint-4").is_dir()
    assert launch(zero3, "speech_lm", output_dir, *arguments, "--resume", "true") == 0
    assert_equal_runs(output_dir, one_batch("speech_lm", text_model=text_model))

    merged, report = AutoModelForCausalLM.from_pretrained(output_dir, output_loading_info=True)
    assert type(merged) is SpeechLMForCausalLM
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys"))
    model = SpeechLMForCausalLM.from_text_model(text_model, merged.config.num_speech_units)
    adapted = PeftModel.from_pretrained(model, output_dir / "adapter").eval()
    ids = torch.randint(merged.config.vocab_size, (2, 9))
    torch.testing.assert_close(merged.eval()(ids).logits, adapted(input_ids=ids).logits)
