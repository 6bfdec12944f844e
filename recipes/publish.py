"""
Publish a trained model as a Hub repo that loads without the suite.

    python recipes/publish.py --model outputs/mini --folder outputs/hub --card CARD.md
    python recipes/publish.py --model outputs/mini --folder outputs/hub --card CARD.md --push_to_hub me/stable-token

CARD.md is yours, for nobody else knows what the model was trained on: its data and their licence (the model's may not
be wider), the training command, the size, and figures from `recipes/evaluate_stable_token.py`. A card in `hub_cards`
shows the form; its licence and figures are those of the models it was measured on.

Runs on any machine in seconds; pushing needs `hf auth login`. The model is any of the suite's, of the class that it
was saved as. Expect a folder with the weights, the processor (of a codec or an encoder the feature extractor), the
source files that they need, and the card, which anyone loads with

    pipeline("automatic-speech-recognition", model=FOLDER, trust_remote_code=True)

or, what writes no text, with `AutoModelForAudioTokenization.from_pretrained(FOLDER, trust_remote_code=True)` and the
like.
"""

from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi
from transformers import AutoConfig, AutoProcessor, HfArgumentParser, PreTrainedModel

import clearspeech  # noqa: F401  registers the suite's classes
from clearspeech.hub import publish, registered_models


@dataclass
class PublishArguments:
    model: str = field(metadata={"help": "Folder of the trained model and its processor or feature extractor."})
    folder: str = field(metadata={"help": "New folder for the self-contained repo."})
    card: str = field(metadata={"help": "Markdown file that becomes the repo's README.md: this model's own card."})
    push_to_hub: str | None = field(default=None, metadata={"help": "Repo to upload to, such as me/stable-token."})
    private: bool = field(default=False, metadata={"help": "Make a new repo on the Hub private."})


def load_model(folder: str) -> PreTrainedModel:
    """
    A trained model, of the registered class that it was saved as.

    Raises:
        ValueError: no registered class was saved there.
    """
    config = AutoConfig.from_pretrained(folder)
    classes = {each.__name__: each for each in registered_models(type(config)).values()}
    saved = [name for name in config.architectures or [] if name in classes]
    if not saved:
        raise ValueError(
            f"{folder} holds {config.architectures}, and a {config.model_type} can be {', '.join(sorted(classes))}: "
            "give a folder of save_pretrained."
        )
    return classes[saved[0]].from_pretrained(folder)


def main(arguments: PublishArguments) -> None:
    model = load_model(arguments.model)
    processor = AutoProcessor.from_pretrained(arguments.model)
    card = Path(arguments.card).read_text(encoding="utf-8")
    folder = publish(model, processor, arguments.folder, card)
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
