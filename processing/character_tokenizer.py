"""A tokenizer of single characters, for models too small for Whisper's 50 000 subwords."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|startoftranscript|>", "<|unknown|>")
CHARACTERS = " 'abcdefghijklmnopqrstuvwxyz"  # all that `normalize_text` leaves of English


def build_character_tokenizer(characters: str = CHARACTERS) -> PreTrainedTokenizerFast:
    """
    One id per character, by default of normalized English text; ids start with start-of-transcript and end with
    end-of-text, as Whisper's do. End-of-text (id 0) also pads; the unknown token only exists so that collators can
    refuse it.
    """
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *characters])}
    end, start, unknown = SPECIAL_TOKENS
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=start, eos_token=end, pad_token=end, unk_token=unknown
    )
