"""
Train a small StableToken, measure it under noise, and let it transcribe: what `make quickstart` runs.

    python recipes/quickstart.py

Needs nothing but the clone: the speech is the embedded corpus (synthetic), the noise is made, and the training starts
from the mini Whisper in `hub_cards/mini/whisper`. Hardware: two CPU cores; about five minutes. Expect a table in which
most tokens survive the noise. An interrupted run goes on where it stopped; a finished model is measured again, not
trained again, unless its folder is removed.
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here asks the Hub
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait crawl on a busy machine

import datasets
import soundfile
import train_stable_token
import transformers
from evaluate_stable_token import condition_titles, draw_tokens, format_table, load_models, measure
from transformers import HfArgumentParser, pipeline

from clearspeech.processing.corpora import load_corpus
from clearspeech.trainers.evaluation import load_noise_conditions

ROOT = Path(__file__).parents[1]
MINUTES = 5


@dataclass
class QuickstartArguments:
    base_model: str = field(default=str(ROOT / "hub_cards/mini/whisper"), metadata={"help": "Mini Whisper folder."})
    output_dir: str = field(default="outputs/quickstart", metadata={"help": "For the model and what it writes."})
    max_steps: int = field(default=500, metadata={"help": "Training steps of 16 utterances."})
    max_utterances: int = field(default=90, metadata={"help": "Test utterances to measure on."})
    num_files: int = field(default=5, metadata={"help": "Files to transcribe."})


def say(step: int, text: str) -> None:
    print(f"\n[{step}/4] {text}", flush=True)


def train(args: QuickstartArguments) -> None:
    """Train into the output folder, or go on with what is there, unless it holds a finished model."""
    folder = Path(args.output_dir)
    if (folder / "processor_config.json").exists():  # what the training recipe writes last
        say(1, f"{folder} holds a trained model already; it is measured below. Remove the folder to train anew.")
        return
    say(1, f"Train for {args.max_steps} steps: Whisper gets a quantizer with five voters inside its encoder, and the")
    print("      two voters who hear noise learn to vote as the three who do not.", flush=True)
    command = ["--preset", "mini", "--base_model", args.base_model, "--output_dir", str(folder), "--resume"]
    command += ["--dataset", "embedded", "--noise_dataset", "embedded", "--max_steps", str(args.max_steps)]
    command += ["--save_steps", "100", "--logging_steps", "100", "--report_to", "none", "--disable_tqdm", "False"]
    train_stable_token.main(command)


def evaluate(args: QuickstartArguments, corpus: datasets.Dataset) -> None:
    """Print the noise table of the test speakers, and draw one utterance's tokens."""
    say(2, f"Measure on {args.max_utterances} utterances of three speakers whom it has not heard.")
    models = load_models(args.output_dir, "cpu")
    waveforms, texts = list(corpus["audio"]), list(corpus["text"])
    noise, conditions = load_noise_conditions(["embedded"], "test"), condition_titles(["embedded"])
    metrics = measure(models, waveforms, texts, noise, ["clean", *conditions])
    print(format_table({"embedded": metrics}, conditions))
    print("WER: wrong words. UED: tokens that noise changes, in percent of the clean ones. Stand-in noise is")
    print("synthetic: babble, engine, siren, wind; held out from training: clock, fire, helicopter, waves.")
    picture = Path(args.output_dir, "tokens.png")
    say(3, f"Draw the tokens of one utterance, clean and under each noise: {picture}")
    draw_tokens(models, waveforms, texts, noise, conditions, picture)


def transcribe(args: QuickstartArguments, corpus: datasets.Dataset) -> None:
    """Write held-out utterances as files, and transcribe them as any user would."""
    say(4, f'Transcribe held-out files: pipeline("automatic-speech-recognition", model="{args.output_dir}")')
    folder = Path(args.output_dir, "audio")
    folder.mkdir(exist_ok=True)
    recognize = pipeline("automatic-speech-recognition", model=args.output_dir)
    step = max(len(corpus) // args.num_files, 1)
    for number, row in enumerate(corpus.select(range(0, len(corpus), step))):
        path = folder / f"{number}.flac"
        soundfile.write(path, row["audio"], 16000)
        print(f"{path}   said: {row['text']:40} heard: {recognize(str(path))['text']}")


def main(arguments: list[str] | None = None) -> None:
    (args,) = HfArgumentParser(QuickstartArguments).parse_args_into_dataclasses(arguments)
    started = time.monotonic()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    print(f"StableToken in four steps, about {MINUTES} minutes on two cores, into {args.output_dir}.")
    train(args)
    corpus = load_corpus("embedded", "test", decoded=True)
    corpus = corpus.shuffle(seed=0).select(range(min(args.max_utterances, len(corpus))))
    evaluate(args, corpus)
    transcribe(args, corpus)
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. {args.output_dir} loads with from_pretrained.")


if __name__ == "__main__":
    main()
