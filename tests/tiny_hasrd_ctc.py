"""Tiny random recognizers on HASRDs and encoders of every kind, and their trainings of a second."""

from pathlib import Path

import torch
from tiny_corpora import encode, make_tone, write_folder
from tiny_hasrd import ENCODERS, make_feature_extractor, make_hasrd
from tiny_training import ARGUMENTS, KillAfterStep, speech_corpus
from transformers import PreTrainedModel

from clearspeech.configuration.configuration_hasrd_ctc import HasrdCTCConfig
from clearspeech.modeling.modeling_hasrd_ctc import HasrdForCTC
from clearspeech.modeling.pretrained_encoders import build_encoder
from clearspeech.processing.character_tokenizer import build_character_tokenizer
from clearspeech.processing.feature_text_collator import FeatureTextCollator
from clearspeech.processing.processing_factored_asr import FactoredASRProcessor
from clearspeech.trainers.speech_trainer import prepare_output_folder
from clearspeech.trainers.trainer_hasrd_ctc import HasrdCTCTrainer, HasrdCTCTrainingArguments

SIZES = dict(hidden_size=12, num_hidden_layers=2)
REPRESENTATIONS = {  # by name: fields
    "features": dict(representation="features"),
    "layer": dict(representation="layer", layer=1),
    "layers": dict(representation="layers"),
    "semantic": dict(representation="semantic"),
    "acoustic": dict(representation="acoustic"),
    "combined": dict(representation="combined"),
    "books": dict(representation="books", books=[1, 3]),
}


def save_speech_model(folder, encoder: str = "best_rq", whole: bool = True, **fields) -> tuple[PreTrainedModel, str]:
    """A HASRD, or an encoder alone, and its folder, with the feature extractor."""
    if whole:
        model = make_hasrd(encoder, **fields)
    else:
        torch.manual_seed(0)
        model = build_encoder(ENCODERS[encoder]()).eval()
    model.save_pretrained(folder)
    make_feature_extractor(encoder).save_pretrained(folder)
    return model, str(folder)


def make_recognizer(
    representation: str = "semantic", encoder: str = "best_rq", **fields
) -> tuple[HasrdForCTC, FactoredASRProcessor]:
    """In evaluation mode, of a HASRD of random weights, which writes letters now and then; and its processor."""
    tokenizer = build_character_tokenizer()
    codec = make_hasrd(encoder)
    torch.manual_seed(0)
    config = HasrdCTCConfig(
        speech_config=codec.config, **SIZES | REPRESENTATIONS[representation] | fields, vocab_size=31
    )
    model = HasrdForCTC(config).eval()
    codec.decoder = None
    if config.reads_books:
        model.codec.load_state_dict(codec.state_dict())
    elif representation != "features":
        model.encoder.load_state_dict(codec.encoder.state_dict())
    with torch.no_grad():
        for weight in model.lstm.parameters():
            weight.mul_(3.0)  # else one letter is the likeliest everywhere
        model.head.weight.mul_(10.0)
    return model, FactoredASRProcessor(make_feature_extractor(encoder), tokenizer)


def build_ctc_trainer(
    output_dir: str, representation: str = "layers", num_rows: int = 12, dropout: float = 0.0, **arguments
) -> HasrdCTCTrainer:
    """On utterances of 0.1 to 0.7 s. arguments: over those of the tests' other trainings."""
    model, processor = make_recognizer(representation, dropout=dropout)
    speech = speech_corpus(num_rows)
    return HasrdCTCTrainer(
        model=model,
        args=HasrdCTCTrainingArguments(**ARGUMENTS | dict(output_dir=str(output_dir)) | arguments),
        train_dataset=speech,
        eval_dataset=speech.select(range(5)),
        data_collator=FeatureTextCollator(processor.feature_extractor, processor.tokenizer),
        processing_class=processor,
    )


def train_recognizer(output_dir: str, resume: bool = False, killed_after: int | None = None, **arguments):
    """Train, save and leave the log, as the recipe does."""
    checkpoint = prepare_output_folder(output_dir, resume)
    trainer = build_ctc_trainer(output_dir, **arguments)
    if killed_after is not None:
        trainer.add_callback(KillAfterStep(killed_after))
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()


def write_speech(folder: Path, splits: dict[str, list[str]]) -> str:
    """Tones of 0.5 s and more, one for each text of each split; the folder."""
    for split, texts in splits.items():
        files = {f"{row}.wav": encode(make_tone(0.5 + 0.1 * row, 300.0 + 100 * row)) for row in range(len(texts))}
        write_folder(folder / split, files, "file_name,text", *(f"{row}.wav,{text}" for row, text in enumerate(texts)))
    return str(folder)
