"""
Train the recognizer that tells how much of what was said is in a representation of speech: HASRD's measure.

The paper's (its section 3, "Evaluation": "train-clean-100", "30K iterations", "a batch size of 32"; one GPU) of the
semantic book of a HASRD:

    accelerate launch recipes/train_hasrd_ctc.py --bf16 --model outputs/hasrd \\
        --dataset ../librispeech/train-clean-100 --output_dir outputs/hasrd_ctc

The Hub's `openslr/librispeech_asr:clean` has train-clean-360 as well. Other rows of Tables 3 and 4 are other
representations: `--representation layer --layer 8` of an encoder (a folder of recipes/pretrain_best_rq.py, or
`--model facebook/hubert-base-ls960`), `features` as they go into it, `acoustic` or `combined` books; `books --books 0`
is the first book of a codec without a semantic one; `layers` learns the weights of Fig. 2. On two CPU cores (about
four minutes):

    accelerate launch --cpu recipes/train_hasrd_ctc.py --preset mini --model outputs/mini_hasrd \\
        --dataset digit_strings:../shared/data/spoken_digits --output_dir outputs/mini_hasrd_ctc

`output_dir` becomes a folder for `pipeline("automatic-speech-recognition")`, with all of the model that it needs in
it. recipes/evaluate_hasrd_ctc.py measures its error rates.
"""

from dataclasses import dataclass, field

from datasets import Dataset
from presets import parse_with_preset
from train_factored_asr import check_transcripts
from training_speech import ResumableArguments, ValidatedSpeechArguments
from transformers import AutoConfig, AutoFeatureExtractor, set_seed

from clearspeech.configuration.configuration_hasrd_ctc import REPRESENTATIONS
from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.feature_text_collator import FeatureTextCollator
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.processing.text_encoding import normalize_transcript
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_hasrd_ctc import HasrdCTCTrainer, HasrdCTCTrainingArguments

PRESETS = {
    "paper": dict(
        dataloader_num_workers=8,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=1000,
        logging_steps=100,
        save_steps=1000,
        save_total_limit=2,
    ),
    "mini": dict(
        hidden_size=128,
        max_seconds=8.0,
        max_validation_rows=100,
        max_steps=1000,
        learning_rate=2e-3,
        keep_representations=True,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        train_sampling_strategy="group_by_length",
        eval_strategy="steps",
        eval_steps=250,
        logging_steps=25,
        save_steps=250,
        save_total_limit=1,
        use_cpu=True,
    ),
}


@dataclass
class RecipeArguments(ValidatedSpeechArguments, ResumableArguments):
    model: str = field(metadata={"help": "Folder or Hub id of a HASRD, BestRQ, HuBERT, wav2vec 2.0 or WavLM."})
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    representation: str = field(
        default="semantic", metadata={"help": "What the recognizer reads.", "choices": list(REPRESENTATIONS)}
    )
    layer: int | None = field(default=None, metadata={"help": "Of --representation layer; 0 goes into the first."})
    books: list[int] | None = field(default=None, metadata={"help": "Of --representation books, numbered from 0."})
    hidden_size: int = field(default=1024, metadata={"help": '"a hidden dimensionality of 1024"'})
    num_hidden_layers: int = field(default=2, metadata={"help": '"a 2-layer BLSTM"'})
    dropout: float = field(default=0.0, metadata={"help": "Between the layers; the paper names none."})


def parse_arguments(arguments: list[str] | None = None) -> tuple[RecipeArguments, HasrdCTCTrainingArguments]:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments, HasrdCTCTrainingArguments), PRESETS, arguments)


def build_processor(
    recipe: RecipeArguments, args: HasrdCTCTrainingArguments, train: Dataset, is_resumed: bool
) -> FactoredASRProcessor:
    """The model's feature extractor and the corpora's characters, saved by the first process; the others read them."""
    with args.main_process_first(local=False, desc="characters"):
        if args.process_index == 0 and not is_resumed:
            is_best_rq = AutoConfig.from_pretrained(recipe.model).model_type in ("hasrd", "best_rq")
            options = {} if is_best_rq else dict(return_attention_mask=True)  # many on the Hub say nothing
            extractor = AutoFeatureExtractor.from_pretrained(recipe.model, **options)
            characters = set().union(*map(normalize_transcript, train.select_columns("text")["text"]))
            tokenizer = build_character_tokenizer("".join(sorted(characters)))
            FactoredASRProcessor(extractor, tokenizer).save_pretrained(args.output_dir)
        return FactoredASRProcessor.from_pretrained(args.output_dir)


def build_model(recipe: RecipeArguments, processor: FactoredASRProcessor) -> HasrdForCTC:
    """A recognizer of random weights on the frozen model."""
    return HasrdForCTC.from_speech_model(
        recipe.model,
        representation=recipe.representation,
        layer=recipe.layer,
        books=recipe.books,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        dropout=recipe.dropout,
        vocab_size=len(processor.tokenizer),
        pad_token_id=processor.tokenizer.pad_token_id,
    )


def main(arguments: list[str] | None = None):
    recipe, args = parse_arguments(arguments)
    checkpoint = prepare_output_folder(args.output_dir, recipe.resume)
    set_seed(args.seed)

    speech = {split: recipe.load(split) for split in ("train", "validation")}
    processor = build_processor(recipe, args, speech["train"], is_resumed=checkpoint is not None)
    check_transcripts(processor, speech)
    trainer = HasrdCTCTrainer(
        model=build_model(recipe, processor),
        args=args,
        train_dataset=speech["train"],
        eval_dataset=speech["validation"],
        data_collator=FeatureTextCollator(processor.feature_extractor, processor.tokenizer),
        processing_class=processor,  # into every checkpoint
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    main()
