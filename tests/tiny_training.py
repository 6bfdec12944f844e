"""
Trainings of a second, for the tests' own process and for processes that they start.

    python tests/tiny_training.py stable_token OUTPUT_DIR --per_device_train_batch_size 4
    accelerate launch --cpu --num_processes 2 tests/tiny_training.py whisper_ctc OUTPUT_DIR

leave in OUTPUT_DIR the weights, and in `trainer_state.json` what was logged.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import json
import multiprocessing
import signal
import socket
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import is_deepspeed_available
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    TrainerCallback,
    WhisperConfig,
)
from transformers.integrations import unset_hf_deepspeed_config

from clearspeech import (
    DisentangledWhisperConfig,
    DisentangledWhisperForConditionalGeneration,
    SpeechLMConfig,
    SpeechLMForCausalLM,
    StableTokenConfig,
    StableTokenForConditionalGeneration,
)
from clearspeech.configuration.configuration_factored_asr import FactoredASRConfig
from clearspeech.modeling.modeling_factored_asr import FactoredASRForRNNT
from clearspeech.modeling.modeling_whisper_ctc import WhisperForJointCTC
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.collators import SpeechTextCollator
from clearspeech.processing.feature_extraction_factored_asr import FactoredASRFeatureExtractor
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.feature_text_collator import FeatureTextCollator
from clearspeech.processing.noisy_pairs import NoisyPairCollator
from clearspeech.processing.perturbation import TRAINING_PERTURBATIONS, Perturber
from clearspeech.processing.unit_sequences import UnitSequenceCollator
from clearspeech.trainers.adapters import add_adapters, save_merged
from clearspeech.trainers.speech_trainer import SpeechTrainer, prepare_output_folder
from clearspeech.trainers.trainer_disentangled_whisper import (
    DisentangledWhisperTrainer,
    DisentangledWhisperTrainingArguments,
)
from clearspeech.trainers.trainer_factored_asr import FactoredASRTrainer, FactoredASRTrainingArguments
from clearspeech.trainers.trainer_speech_lm import SpeechLMTrainer, SpeechLMTrainingArguments
from clearspeech.trainers.trainer_stable_token import StableTokenTrainer, StableTokenTrainingArguments
from clearspeech.trainers.trainer_whisper_ctc import WhisperCTCTrainer, WhisperCTCTrainingArguments

if is_deepspeed_available():  # the first trainer would import it, which takes seconds
    import deepspeed  # noqa: F401

SHAPE = dict(
    vocab_size=31,
    num_mel_bins=16,
    d_model=32,
    encoder_layers=3,
    encoder_attention_heads=2,
    encoder_ffn_dim=64,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=64,
    max_source_positions=100,
    max_target_positions=24,
    decoder_start_token_id=1,
    bos_token_id=1,
    eos_token_id=0,
    pad_token_id=0,
    begin_suppress_tokens=None,
    dropout=0.0,
)
TEXT_CONFIG = Qwen2Config(
    vocab_size=30,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    eos_token_id=3,
    pad_token_id=0,
    tie_word_embeddings=True,
)
ARGUMENTS = dict(
    max_steps=5,
    per_device_train_batch_size=8,
    learning_rate=3e-3,
    warmup_steps=2,
    logging_steps=1,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    use_cpu=True,
    remove_unused_columns=False,
    dataloader_pin_memory=False,
)


def speech_corpus(num_rows: int = 12) -> Dataset:
    """Noise whose loudness swings, of 0.1 to 0.7 s, with a random transcript of one to nine letters."""
    random = np.random.default_rng(0)
    rows = []
    for length in random.integers(1600, 11200, num_rows):
        loudness = 0.1 * np.sin(4 * np.pi * np.arange(length) / 16000 + random.uniform(0, 3)) ** 2
        letters = random.integers(ord("a"), ord("z") + 1, random.integers(1, 10))
        audio = (random.standard_normal(length) * loudness).astype(np.float32)
        rows.append({"audio": audio, "text": "".join(map(chr, letters)), "num_samples": int(length)})
    return Dataset.from_list(rows).with_format("numpy")


def pair_corpus(num_rows: int = 12) -> Dataset:
    """`speech_corpus` as pairs: white noise of two loudnesses stands for two classes."""
    speech, random = speech_corpus(num_rows), np.random.default_rng(1)
    noises = [("rain", 0.02), ("wind", 0.1)]
    rows = []
    for index, row in enumerate(speech):
        noise, loudness = noises[index % 2]
        noisy = row["audio"] + (loudness * random.standard_normal(len(row["audio"]))).astype(np.float32)
        rows.append({**row, "audio": noisy, "clean_audio": row["audio"], "noise": noise})
    return Dataset.from_list(rows).with_format("numpy")


def sequence_corpus(config: SpeechLMConfig, num_rows: int = 12) -> Dataset:
    """Sequences of 3 to 12 random units and 1 to 5 letters; every third begins with a prompt of two tokens."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(num_rows):
        prompt = random.integers(1, config.text_vocab_size, 2 * (index % 3 == 0))
        units = random.integers(config.first_unit_token_id, config.vocab_size, random.integers(3, 13))
        text = random.integers(1, config.text_vocab_size, random.integers(1, 6))
        tokens = [*prompt, *units, config.speech_end_token_id, *text, config.text_end_token_id]
        rows.append({"input_ids": tokens, "num_prompt": len(prompt), "num_tokens": len(tokens)})
    return Dataset.from_list(rows)


def save_text_model(folder: str | Path, text_config: PreTrainedConfig = TEXT_CONFIG) -> str:
    """A random language model of text to train adapters for; the folder."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(text_config).save_pretrained(folder)
    return str(folder)


def build_trainer(
    method: str,
    output_dir: str,
    dropout: float = 0.0,
    num_rows: int = 12,
    mel_frames_per_token: int = 4,
    num_shards: int | None = None,
    config_fields: dict | None = None,
    eval_rows: Dataset | str | None = "first",
    text_model: str | None = None,
    **arguments,
) -> SpeechTrainer:
    """
    A trainer of `stable_token`, `disentangled_whisper`, `speech_lm`, `factored_asr` or `whisper_ctc` with the same
    random weights each time.

    num_shards: of the corpus as a stream; None leaves it whole. config_fields: over the tiny model's.
    eval_rows: of `disentangled_whisper`, the first of the corpus when not given.
    text_model: of `speech_lm`, a folder to train adapters for; a random model is trained whole when not given.
    arguments: over `ARGUMENTS`.
    """
    torch.manual_seed(0)
    arguments = {**ARGUMENTS, "output_dir": str(output_dir), **arguments}
    if method == "speech_lm":
        return build_speech_lm_trainer(num_rows, dropout, config_fields or {}, text_model, arguments)
    if method == "factored_asr":
        return build_factored_trainer(num_rows, dropout, config_fields or {}, arguments)
    tokenizer = build_character_tokenizer()
    speech = speech_corpus(num_rows)
    if num_shards is not None:
        speech = speech.to_iterable_dataset(num_shards).shuffle(seed=0, buffer_size=4)
    parts = dict(
        train_dataset=speech,
        data_collator=SpeechTextCollator(tokenizer, tokenizer.bos_token_id),
        feature_extractor=StableTokenFeatureExtractor(
            SHAPE["num_mel_bins"], mel_frames_per_token=mel_frames_per_token
        ),
    )
    shape = {**SHAPE, "dropout": dropout, **(config_fields or {})}
    if method == "stable_token":
        config = StableTokenConfig(**shape, quantize_position=2, num_bits=4, num_voters=3, window_overlap=10)
        perturber = Perturber([row for row in TRAINING_PERTURBATIONS if row.kind != "real"])
        model, args = StableTokenForConditionalGeneration(config), StableTokenTrainingArguments(**arguments)
        return StableTokenTrainer(model=model, args=args, perturber=perturber, **parts)
    if method == "disentangled_whisper":
        return build_disentangling_trainer(parts["feature_extractor"], num_rows, shape, eval_rows, arguments)
    unaugmented = dict(speed_factors=[1.0], num_masks=0, mask_text=0.0)
    args, model = (
        WhisperCTCTrainingArguments(**{**unaugmented, **arguments}),
        WhisperForJointCTC(WhisperConfig(**shape)),
    )
    return WhisperCTCTrainer(model=model, args=args, processing_class=tokenizer, **parts)


def build_disentangling_trainer(
    feature_extractor: StableTokenFeatureExtractor, num_rows: int, shape: dict, eval_rows, arguments: dict
) -> DisentangledWhisperTrainer:
    """W_NC is constant unless `arguments` say otherwise."""
    tokenizer, pairs = build_character_tokenizer(), pair_corpus(num_rows)
    fields = dict(window_overlap=10, codebook_size=16, codebook_dim=8, noise_head_dim=16, downsampling="mean")
    config = DisentangledWhisperConfig(**{**fields, "noise_labels": ["rain", "wind"], **shape})
    model = DisentangledWhisperForConditionalGeneration(config)
    if config.bottleneck == "quantizer":
        torch.nn.init.normal_(model.model.quantizer.codebook, std=0.1)  # near the latents of random weights
        model.model.quantizer.sums.copy_(model.model.quantizer.codebook[:-1])
    constant = dict(noise_weight_schedule="constant")
    return DisentangledWhisperTrainer(
        model=model,
        args=DisentangledWhisperTrainingArguments(**{**constant, **arguments}),
        train_dataset=pairs,
        eval_dataset=pairs.select(range(6)) if isinstance(eval_rows, str) else eval_rows,
        data_collator=NoisyPairCollator(tokenizer, tokenizer.bos_token_id, config.noise_classes),
        feature_extractor=feature_extractor,
    )


def build_speech_lm_trainer(
    num_rows: int, dropout: float, fields: dict, text_model: str | None, arguments: dict
) -> SpeechLMTrainer:
    """Two layers over 30 text tokens and 20 units; no biases, as a key's has a gradient of mere rounding noise."""
    args = SpeechLMTrainingArguments(**arguments)
    if text_model is None:
        shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0)
        text_config = LlamaConfig(vocab_size=30, attention_dropout=dropout, **{**shape, **fields})
        model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(text_config, num_speech_units=20))
        model.generation_config.pad_token_id = 0
    else:
        unset_hf_deepspeed_config()  # the trainer splits it up, as in the recipe
        model = add_adapters(SpeechLMForCausalLM.from_text_model(text_model, num_speech_units=20), rank=4)
    sequences = sequence_corpus(model.config, num_rows)
    return SpeechLMTrainer(
        model=model,
        args=args,
        train_dataset=sequences,
        eval_dataset=sequences.select(range(5)),
        data_collator=UnitSequenceCollator(pad_token_id=0),
    )


def build_factored_trainer(num_rows: int, dropout: float, fields: dict, arguments: dict) -> FactoredASRTrainer:
    """A Conformer of one layer over 30 ms frames of 3 x 8 mel bins, or the encoder of `fields`; every term trains."""
    tokenizer, speech = build_character_tokenizer(), speech_corpus(num_rows)
    encoder = dict(model_type="conformer_encoder", input_size=24, hidden_size=16, intermediate_size=32)
    # no biases, as a key's has a gradient of mere rounding noise
    encoder |= dict(num_hidden_layers=1, num_attention_heads=2, conv_kernel_size=5, attention_bias=False)
    encoder |= dict.fromkeys(("dropout", "activation_dropout", "attention_dropout"), dropout)
    sizes = dict(
        factor_dim=8, factor_hidden_size=12, num_factor_layers=2, decoder_hidden_size=16, num_decoder_layers=1
    )
    ids = dict(vocab_size=len(tokenizer) + 1, blank_token_id=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    config = FactoredASRConfig(**{"encoder_config": encoder, "dropout": dropout, **sizes, **ids, **fields})
    extractor = FactoredASRFeatureExtractor(num_mel_bins=8)
    return FactoredASRTrainer(
        model=FactoredASRForRNNT(config),
        args=FactoredASRTrainingArguments(**{"weight_decay": 0.0, "ctc_weight": 0.5, **arguments}),
        train_dataset=speech,
        eval_dataset=speech.select(range(5)),
        data_collator=FeatureTextCollator(extractor, tokenizer),
        feature_extractor=extractor,
    )


class KillAfterStep(TrainerCallback):
    """A SIGKILL for every process right after an optimizer step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def run(method: str, output_dir: str, resume: bool = False, killed_after: int | None = None, **arguments):
    """Train, save and leave the log, as a recipe does."""
    checkpoint = prepare_output_folder(output_dir, resume)
    trainer = build_trainer(method, output_dir, **arguments)
    if killed_after is not None:
        trainer.add_callback(KillAfterStep(killed_after))
    trainer.train(resume_from_checkpoint=checkpoint)
    if isinstance(trainer.model, PeftModel):
        save_merged(trainer, arguments["text_model"])
    else:
        trainer.save_model()
    trainer.save_state()


def run_until_killed(event: int, output_dir: str, **arguments):
    """
    `run` that gets a SIGKILL at the `event`th thing it does to the files of `output_dir`: before a file or folder is
    opened, made, moved or deleted, or in the middle of writing one.
    """
    seen = 0

    def count() -> bool:
        nonlocal seen
        seen += 1
        return seen == event

    def watch(name: str, details: tuple):
        deletes = name in ("os.remove", "os.rmdir")  # inside a tree they name no folder
        if deletes or (name in ("open", "os.rename", "os.mkdir") and str(details[0]).startswith(output_dir)):
            if count():
                os.kill(os.getpid(), signal.SIGKILL)

    def save_half(value, path: str):
        save(value, path)
        if count():
            os.truncate(path, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    save, torch.save = torch.save, save_half
    sys.addaudithook(watch)
    run(output_dir=output_dir, **arguments)


def start(task=run, rank: int = 0, num_processes: int = 1, port: int = 0, **arguments) -> multiprocessing.Process:
    """`task(**arguments)` in a process of its own with one thread, one of `num_processes` that train together."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tiny_training"])  # imports once, for all processes of the test session
    os.environ["PYTHONPATH"] = str(Path(__file__).parent)  # where the server finds it
    process = context.Process(target=run_as_rank, args=(task, rank, num_processes, port), kwargs=arguments)
    process.start()
    return process


def run_as_rank(task, rank: int, num_processes: int, port: int, **arguments):
    """What `start` runs: sets what a launcher sets."""
    torch.set_num_threads(1)
    if num_processes > 1:
        place = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=num_processes, MASTER_ADDR="localhost", MASTER_PORT=port)
        os.environ.update({name: str(value) for name, value in place.items()})
    task(**arguments)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_apart(num_processes: int = 1, task=run, **arguments) -> list[int]:
    """Run `task` in processes of their own and wait for them; their exit codes, -9 after a SIGKILL."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    processes = [start(task, rank, num_processes, port, **arguments) for rank in range(num_processes)]
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def read_run(output_dir: str | Path) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Final weights of a `run` and the logged lines of its optimizer steps."""
    log = json.loads(Path(output_dir, "trainer_state.json").read_text())["log_history"]
    return load_file(Path(output_dir, "model.safetensors")), [line for line in log if "loss" in line]


def relative_difference(ours: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """Norm of the difference over the norm of the reference, of the tensor where it is largest."""
    assert ours.keys() == reference.keys()
    return max(float((ours[name] - value).norm() / value.norm()) for name, value in reference.items())


def main():
    method, output_dir, *arguments = sys.argv[1:]
    names = [name.removeprefix("--") for name in arguments[::2]]
    torch.set_num_threads(1)
    run(method, output_dir, **dict(zip(names, map(json.loads, arguments[1::2]), strict=True)))


if __name__ == "__main__":
    main()
