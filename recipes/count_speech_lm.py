"""
Count the embedding's rows and the parameters of the full-size SpeechLMs, trained whole and with adapters.

    python recipes/count_speech_lm.py

Hardware: any; nothing is allocated (the `meta` device). Time: seconds. Expected: the SLD paper's "(t + s) x d" matrix
has 56259 rows with the two end tokens; stored under "counts" in `hub_cards/results/speech_lm.json`.
"""

from dataclasses import dataclass, field

import torch
from transformers import GPT2Config, HfArgumentParser, PreTrainedConfig, Qwen2Config

from clearspeech import SpeechLMConfig, SpeechLMForCausalLM
from clearspeech.trainers.adapters import add_adapters
from clearspeech.trainers.results import update_results

GPT2_MEDIUM = GPT2Config(n_embd=1024, n_layer=24, n_head=16)
QWEN2_5_3B = Qwen2Config(
    vocab_size=151936,
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=2,
    tie_word_embeddings=True,
)
NUM_PIECES = 6000  # "6000 subword units"
NUM_CODES = 8192  # StableToken's


@dataclass
class RecipeArguments:
    lora_rank: int = field(default=16, metadata={"help": "Rank of the adapters on the larger text model."})
    results: str = field(
        default="hub_cards/results/speech_lm.json", metadata={"help": "JSON file that the counts are stored in."}
    )


def count_row(name: str, text_config: PreTrainedConfig, num_speech_units: int, rank: int | None = None) -> dict:
    """One model, without memory for its weights; with adapters of a rank, or trained whole."""
    with torch.device("meta"):
        model = SpeechLMForCausalLM(SpeechLMConfig.from_text_config(text_config, num_speech_units))
    parameters = model.num_parameters()
    if rank is not None:
        model = add_adapters(model, rank)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    return {"name": name, "rows": model.config.vocab_size, "parameters": parameters, "trainable": trainable}


def main(arguments: list[str] | None = None):
    recipe = HfArgumentParser(RecipeArguments).parse_args_into_dataclasses(arguments)[0]
    rows = [
        count_row("GPT-2 medium, 6000 pieces", GPT2_MEDIUM, NUM_PIECES),
        count_row(f"Qwen2.5-3B, 8192 codes, LoRA of rank {recipe.lora_rank}", QWEN2_5_3B, NUM_CODES, recipe.lora_rank),
    ]
    print(f"{'':44} {'rows':>8} {'parameters (M)':>16} {'trainable (M)':>15}")
    for row in rows:
        print(f"{row['name']:44} {row['rows']:8} {row['parameters'] / 1e6:16.3f} {row['trainable'] / 1e6:15.3f}")
    update_results(recipe.results, "speech_lm", counts=rows)


if __name__ == "__main__":
    main()
