"""
Count the parameters of the paper's codecs and encoders, and their bitrates.

    python recipes/count_hasrd.py

Hardware: any; nothing is allocated (the `meta` device). Time: seconds. Expected: 76.6 M for DAC, 68.0 M and 48.0 M
for DAC+fbank and DAC+fbank+SepConv (Table 1), 61.7 M for BestRQ+, where Table 3 says 62.0, 131.4 M for HASRD (HuBERT),
where it says 131.7. HASRD (BestRQ+), with an encoder 768 wide, has 140.7 M, where Table 3 says 141.6 and Table 2, of
the same model, 99.5: with an encoder 516 wide it has 93.0 M. Centroids are counted. Stored under "counts" in
`hub_cards/results/hasrd.json`. The paper's 2.79 kbps are those of a segment of 5 s, which ends within a token.
"""

from dataclasses import dataclass, field

import torch
from transformers import DacConfig, DacModel, HfArgumentParser

from clearspeech import BestRQConfig, BestRQForPreTraining, HasrdConfig, HasrdModel
from clearspeech.trainers.results import update_results

BARE_ENCODER = dict(num_hidden_layers=0, hidden_size=1024, num_attention_heads=8)  # Table 1's: the front-end alone


@dataclass
class RecipeArguments:
    results: str = field(
        default="hub_cards/results/hasrd.json", metadata={"help": "JSON file that the counts are stored in."}
    )


def bare_config(separable: bool) -> HasrdConfig:
    """Of DAC+fbank, or DAC+fbank+SepConv: nine residual books of the front-end's output."""
    encoder_config = BestRQConfig(**BARE_ENCODER, separable=separable)
    return HasrdConfig(encoder_config=encoder_config, num_semantic_codes=0, separable=separable)


def count(*modules: torch.nn.Module) -> int:
    """Weights of some modules, and the centroids of a semantic book."""
    centroids = [values for module in modules for name, values in module.named_buffers() if name.endswith("codebook")]
    return sum(weight.numel() for module in modules for weight in module.parameters()) + sum(
        map(torch.numel, centroids)
    )


def codec_row(name: str, config: HasrdConfig, paper: float | None, paper_kbps: float) -> dict:
    model = HasrdModel(config)
    known = {} if paper is None else {"paper": paper}
    return {"name": name, "parameters": count(model), **known, "kbps": config.bitrate, "paper_kbps": paper_kbps}


def count_models() -> list[dict]:
    """All rows, without memory for weights."""
    hubert = HasrdConfig(encoder_config={"model_type": "hubert"})
    narrow = HasrdConfig(encoder_config={"model_type": "best_rq"})
    with torch.device("meta"):
        dac, model, pretraining = (
            DacModel(DacConfig()),
            HasrdModel(HasrdConfig()),
            BestRQForPreTraining(BestRQConfig()),
        )
        weights = [*pretraining.model.parameters(), *pretraining.head.parameters()]
        rows = [
            {"name": "DAC (baseline)", "parameters": count(dac), "paper": 76.6},
            codec_row("DAC+fbank", bare_config(separable=False), 68.0, 2.79),
            codec_row("DAC+fbank+SepConv", bare_config(separable=True), 48.0, 2.79),
            {"name": "BestRQ+", "parameters": sum(weight.numel() for weight in weights), "paper": 62.0},
            codec_row("HASRD (BestRQ+)", HasrdConfig(), 141.6, 3.1),
            codec_row("HASRD (BestRQ+), encoder of 516", narrow, 99.5, 3.1),
            codec_row("HASRD (HuBERT)", hubert, 131.7, 4.5),
        ]
    books = [model.semantic_quantizer, model.acoustic_quantizer]
    parts = {"encoder": [model.encoder], "W": [model.projection], "books": books, "decoder": [model.decoder]}
    return rows + [
        {"name": f"HASRD (BestRQ+): {part}", "parameters": count(*modules)} for part, modules in parts.items()
    ]


def main(arguments: list[str] | None = None):
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    rows = count_models()
    print(f"{'':34} {'parameters (M)':>16} {'paper (M)':>12} {'kbps':>8} {'paper':>8}")
    for row in rows:
        paper, kbps, paper_kbps = (row[name] if name in row else "" for name in ("paper", "kbps", "paper_kbps"))
        print(f"{row['name']:34} {row['parameters'] / 1e6:16.3f} {paper:>12} {kbps:>8} {paper_kbps:>8}")
    update_results(recipe.results, "hasrd", counts=rows)


if __name__ == "__main__":
    main()
