"""
Count parameters and operations of StableToken for each number of voters (paper, appendix B.6 and Table 12).

    python recipes/count_stable_token.py

Hardware: any; nothing is allocated (the `meta` device). Time: seconds. Expected: the paper's eight figures to the
printed digit, stored under "counts" in `hub_cards/results/stable_token.json`.

The paper counts with the THOP library on 30 s of audio, and its figures are met with THOP's own conventions. Counted
are the tokenizer's convolutions, layers, voters and output projection; not the position table. An operation is one
multiply-accumulate of a convolution or a linear map (without its bias), four operations per number through a layer
norm, and one per number out of the average pooling. THOP sees modules only: the two matrix products of attention are
left out. They are printed beside the paper's figure, because a run does pay for them.
"""

from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import HfArgumentParser

from clearspeech import StableTokenConfig, StableTokenModel
from clearspeech.trainers.results import update_results

PAPER = {  # Table 12: parameters in millions, "FLOPs" in G
    1: (320.261, 480.978),
    3: (320.294, 481.003),
    5: (320.328, 481.028),
    7: (320.361, 481.053),
}
NUM_MEL_FRAMES = 3000  # "we use an input audio with a duration of 30 seconds"


@dataclass
class RecipeArguments:
    results: str = field(
        default="hub_cards/results/stable_token.json", metadata={"help": "JSON file that the counts are stored in."}
    )


def build_on_meta(config: StableTokenConfig) -> StableTokenModel:
    """The tokenizer without memory for its weights."""
    with torch.device("meta"):
        return StableTokenModel(config)


def count_parameters(model: StableTokenModel) -> int:
    """All weights except the position table."""
    return sum(weight.numel() for name, weight in model.named_parameters() if "embed_positions" not in name)


def count_operations(model: StableTokenModel, num_mel_frames: int) -> int:
    """THOP's operations for `num_mel_frames` frames (10 ms each) of one utterance; see the top of this page."""
    encoder, config = model.encoder, model.config
    num_states = num_mel_frames // 2
    num_tokens = num_states // config.pooling_size
    operations = encoder.conv1.weight.numel() * num_mel_frames + encoder.conv2.weight.numel() * num_states
    for module in encoder.layers.modules():
        if isinstance(module, nn.Linear):
            operations += module.weight.numel() * num_states
        elif isinstance(module, nn.LayerNorm):
            operations += 4 * config.d_model * num_states
    operations += config.d_model * num_tokens  # average pooling
    quantizer = model.quantizer
    return operations + (quantizer.project_in.weight.numel() + quantizer.project_out.weight.numel()) * num_tokens


def count_attention_products(config: StableTokenConfig, num_mel_frames: int) -> int:
    """Multiply-accumulates of queries with keys and of weights with values, which THOP does not see."""
    num_states = num_mel_frames // 2
    return config.quantize_position * 2 * num_states**2 * config.d_model


def count_row(num_voters: int) -> dict:
    """One row of Table 12 for the shape of whisper-large-v3, with the paper's figures beside it."""
    model = build_on_meta(StableTokenConfig(num_voters=num_voters))
    parameters, operations = PAPER[num_voters]
    return {
        "name": f"whisper-large-v3, N={num_voters}",
        "parameters": count_parameters(model),
        "paper": parameters,
        "operations": count_operations(model, NUM_MEL_FRAMES),
        "paper_operations_g": operations,
        "attention_products": count_attention_products(model.config, NUM_MEL_FRAMES),
    }


def main(arguments: list[str] | None = None):
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    rows = [count_row(num_voters) for num_voters in PAPER]
    print(f"{'':24} {'parameters (M)':>16} {'paper':>9} {'operations (G)':>16} {'paper':>9} {'+ attention (G)':>16}")
    for row in rows:
        print(
            f"{row['name']:24} {row['parameters'] / 1e6:16.3f} {row['paper']:9.3f} {row['operations'] / 1e9:16.3f} "
            f"{row['paper_operations_g']:9.3f} {(row['operations'] + row['attention_products']) / 1e9:16.3f}"
        )
    update_results(recipe.results, "stable_token", counts=rows)


if __name__ == "__main__":
    main()
