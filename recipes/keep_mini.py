"""
Keep a trained mini model in the repository: float16 weights, configuration, processor, card; no source code.

    python recipes/keep_mini.py --model outputs/mini_whisper --folder hub_cards/mini/whisper --card CARD.md

Seconds on any machine. The folder's config asks for float32, so that a user meets the precision it was measured in.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import AutoModelForSpeechSeq2Seq, HfArgumentParser

from clearspeech.hub import read_json, save_clean, write_json
from clearspeech.processing.processing_stable_token import StableTokenProcessor

MAX_BYTES = 8 * 2**20


@dataclass
class KeepArguments:
    model: str = field(metadata={"help": "Folder of the trained model and its processor."})
    folder: str = field(metadata={"help": "Where it is kept; files there are replaced."})
    card: str = field(metadata={"help": "Markdown file that becomes the folder's README.md."})


def main(arguments: KeepArguments) -> None:
    folder = Path(arguments.folder)
    model = AutoModelForSpeechSeq2Seq.from_pretrained(arguments.model).half()
    save_clean(model, StableTokenProcessor.from_pretrained(arguments.model), folder)
    write_json(folder / "config.json", read_json(folder / "config.json") | {"dtype": "float32"})
    (folder / "README.md").write_text(Path(arguments.card).read_text())
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if size > MAX_BYTES:
        raise ValueError(f"{folder} has {size / 2**20:.1f} MiB of weights; at most {MAX_BYTES / 2**20:.0f} are kept.")
    print(f"{folder}: {sum(p.numel() for p in model.parameters()):,} parameters, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(HfArgumentParser(KeepArguments).parse_args_into_dataclasses()[0])
