"""
Publish a trained model as a Hub repo that loads without the suite.

    python recipes/publish.py --model outputs/stable_token --folder outputs/hub
    python recipes/publish.py --model outputs/stable_token --folder outputs/hub --push_to_hub me/stable-token

Runs on any machine in seconds; pushing needs `hf auth login`. Expect a folder with the weights, the processor, the
source files that they need, and the card, which anyone loads with

    pipeline("automatic-speech-recognition", model=FOLDER, trust_remote_code=True)
"""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor, HfArgumentParser

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.hub import publish

CARDS = Path(__file__).parents[1] / "hub_cards"


@dataclass
class PublishArguments:
    model: str = field(metadata={"help": "Folder of the trained model and its processor."})
    folder: str = field(metadata={"help": "New folder for the self-contained repo."})
    card: str | None = field(default=None, metadata={"help": "Markdown file; the method's card by default."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Repo to upload to, such as me/stable-token."})
    private: bool = field(default=False, metadata={"help": "Make a new repo on the Hub private."})


def main(arguments: PublishArguments) -> None:
    model = AutoModelForSpeechSeq2Seq.from_pretrained(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)
    card = Path(arguments.card) if arguments.card else CARDS / f"{model.config.model_type}.md"
    folder = publish(model, processor, arguments.folder, card.read_text(encoding="utf-8"))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")

    if arguments.push_to_hub:
        api = HfApi()
        api.create_repo(arguments.push_to_hub, private=arguments.private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=arguments.push_to_hub, folder_path=folder, commit_message="Publish the model"
        )
        print(commit.commit_url)


if __name__ == "__main__":
    main(HfArgumentParser(PublishArguments).parse_args_into_dataclasses()[0])
