"""Low-rank adapters (LoRA) of a SpeechLM: the text model rests, the rows of units and end tokens are trained."""

from pathlib import Path

from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import Trainer
from transformers.integrations import unset_hf_deepspeed_config

from ..configuration.configuration_speech_lm import NUM_END_TOKENS
from ..modeling.modeling_speech_lm import SpeechLMForCausalLM

ADAPTER_FOLDER = "adapter"
SCALE = 2.0  # of what the adapters add to a layer


def add_adapters(model: SpeechLMForCausalLM, rank: int) -> PeftModel:
    """
    `model` with adapters on all linear layers of its text model, whose own weights are frozen.

    `<text_end>`, `<speech_end>` and the units are new to the text model: their rows are trained as they are, and saved
    with the adapters; one set of rows where the head is tied to the embedding, two where it is not. Adapters and new
    rows are in full precision, also beside a text model in half.

    Under DeepSpeed, add them before a trainer splits the model up: PEFT reads the new rows.

    Args:
        rank: of the adapters.

    Raises:
        ValueError: a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"Adapters need a rank of at least 1; got {rank}.")
    tables = [model.get_input_embeddings()]
    if not model.config.tie_word_embeddings:  # a tied head gets the embedding's rows from PEFT
        tables.append(model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if module in tables]
    new_rows = list(range(model.config.text_vocab_size, model.config.vocab_size))
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=rank,
        lora_alpha=SCALE * rank,
        target_modules="all-linear",
        trainable_token_indices=dict.fromkeys(names, new_rows),
    )
    return get_peft_model(model, config)


def merge_adapters(text_model: str, adapters: str | Path) -> SpeechLMForCausalLM:
    """
    A plain SpeechLM, without PEFT, with the logits that the adapters were trained to.

    Args:
        text_model: folder or Hub id that the training started from.
        adapters: folder that they were saved in.

    Raises:
        ValueError: the text model's vocabulary is not the one that the adapters' new rows follow.
    """
    new_rows, *_ = LoraConfig.from_pretrained(adapters).trainable_token_indices.values()
    model = SpeechLMForCausalLM.from_text_model(text_model, len(new_rows) - NUM_END_TOKENS)
    if model.config.text_end_token_id != new_rows[0]:
        raise ValueError(
            f"{adapters} has adapters for a text model of {new_rows[0]} rows; {text_model} has "
            f"{model.config.text_vocab_size}. Merge them into the one that they were trained for."
        )
    return PeftModel.from_pretrained(model, adapters).merge_and_unload()


def save_merged(trainer: Trainer, text_model: str):
    """
    Write the adapters to `output_dir/adapter`, and the SpeechLM merged from them to `output_dir`. Call it on every
    process.

    text_model: folder or Hub id that the training started from.
    """
    folder = Path(trainer.args.output_dir)
    trainer.save_model(str(folder / ADAPTER_FOLDER))
    if trainer.is_world_process_zero():
        unset_hf_deepspeed_config()  # or ZeRO-3 would split the merged model up, too
        merge_adapters(text_model, folder / ADAPTER_FOLDER).save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()
