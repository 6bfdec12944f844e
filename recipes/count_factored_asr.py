"""
Count the parameters of the paper's two models, and of what they are made of.

    python recipes/count_factored_asr.py

Hardware: any; nothing is allocated (the `meta` device). Time: seconds. Expected: the RNN-T baseline has 67.2 M, where
the paper says 66; the Conformer 127.3 M, or 118.9 M with one layer in the prediction network, where it says 118 (for
"two layers"). Stored under "counts" in `hub_cards/results/factored_asr.json`.
"""

from dataclasses import dataclass, field

import torch
from tables_factored_asr import BASELINE, ENCODERS, FULL, row_name
from train_factored_asr import OWN_ENCODERS
from transformers import HfArgumentParser

from clearspeech import FactoredASRConfig, FactoredASRForRNNT
from clearspeech.trainers.results import update_results

PAPER = {"RNN-T": 66, "Conformer": 118}  # in millions


@dataclass
class RecipeArguments:
    results: str = field(
        default="hub_cards/results/factored_asr.json", metadata={"help": "JSON file that the counts are stored in."}
    )


def build_model(encoder: str, factorize: bool, **fields) -> FactoredASRForRNNT:
    """A model of the paper's size, without memory for its weights."""
    encoder_config = OWN_ENCODERS[ENCODERS[encoder]]()
    with torch.device("meta"):
        return FactoredASRForRNNT(FactoredASRConfig(encoder_config=encoder_config, factorize=factorize, **fields))


def count(*modules: torch.nn.Module) -> int:
    """Weights of some modules."""
    return sum(weight.numel() for module in modules for weight in module.parameters())


def count_model(encoder: str) -> list[dict]:
    """Both models with one encoder, and the parts of the full one."""
    baseline, short = (build_model(encoder, factorize=False, num_decoder_layers=layers) for layers in (2, 1))
    full = build_model(encoder, factorize=True)
    factors = count(full.content_network, full.context_network)
    transducer = count(full.encoder_projector, full.decoder, full.joint)
    return [
        {"name": row_name(encoder, BASELINE), "parameters": count(baseline), "paper": PAPER[encoder]},
        {
            "name": f"{row_name(encoder, BASELINE)}, prediction network of one layer",
            "parameters": count(short),
            "paper": PAPER[encoder],
        },
        {"name": row_name(encoder, FULL), "parameters": count(full)},
        {"name": f"{encoder}: encoder", "parameters": count(full.frame_encoder)},
        {"name": f"{encoder}: prediction network and joint", "parameters": transducer},
        {"name": f"{encoder}: factor networks", "parameters": factors},
        {"name": f"{encoder}: reconstructors, in training only", "parameters": count(full.reconstruction)},
    ]


def main(arguments: list[str] | None = None):
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    rows = [row for encoder in ENCODERS for row in count_model(encoder)]
    print(f"{'':60} {'parameters (M)':>16} {'paper (M)':>12}")
    for row in rows:
        paper = row["paper"] if "paper" in row else ""
        print(f"{row['name']:60} {row['parameters'] / 1e6:16.3f} {paper:>12}")
    update_results(recipe.results, "factored_asr", counts=rows)


if __name__ == "__main__":
    main()
