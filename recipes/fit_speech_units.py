"""
Make speech units: k-means of a speech encoder's layer, and subwords of the clusters.

The SLD paper's units (section 4.1, "Discrete Speech Tokens"): WavLM-large, layer 23, 2000 clusters of 100 of the 960
hours of LibriSpeech, 6000 subwords of all of them at three speeds. Estimated: an hour or two on eight GPUs for states
and codes; an hour and a half for the clusters on one CPU core (6000 frames a second, and 20 starts). States take 37 GB
of disk, twice as much while they are joined; `work/` in the output folder may be removed in the end:

    accelerate launch recipes/fit_speech_units.py --dataset openslr/librispeech_asr:all --output_dir outputs/units

HuBERT instead: --encoder facebook/hubert-large-ll60k. The mini, from the encoder in `hub_cards/mini/whisper`, on two
CPU cores (about 3 minutes for 34 minutes of speech):

    accelerate launch --cpu --num_processes 2 recipes/fit_speech_units.py --preset mini --dataset ../shared/data/an4 \\
        --output_dir outputs/units

Other tokenizers of the suite have units already, and need no clusters; here their subwords are learned:

    python recipes/fit_speech_units.py --tokenizer hub_cards/mini/stable_token --vocab_size 1000 \\
        --dataset ../shared/data/an4 --output_dir outputs/units

`output_dir` becomes a SpeechLMProcessor's folder, for `recipes/train_speech_lm.py --units`. A run that was killed goes
on where it stopped when it is started again, with as many processes as there are then.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import PartialState
from clustering import ClusteringArguments, fit_centroids
from datasets import Dataset
from filelock import FileLock
from presets import parse_with_preset
from transformers import AutoFeatureExtractor

from clearspeech.modeling.modeling_kmeans_tokenizer import KMeansTokenizerModel
from clearspeech.modeling.pretrained_encoders import weights_checksum
from clearspeech.processing.feature_extraction_stable_token import StableTokenFeatureExtractor
from clearspeech.processing.processing_speech_lm import SpeechLMProcessor
from clearspeech.processing.unit_pieces import FILE_NAME, UnitPieces
from clearspeech.trainers.results import write_atomically
from clearspeech.trainers.unit_extraction import claim_folder, extract_units, units_checksum

PRESETS = {
    "paper": {},
    "mini": dict(
        encoder="hub_cards/mini/whisper",
        layer=4,
        num_clusters=500,
        sample_share=1.0,
        batch_frames=2000,
        num_passes=5,
        num_inits=3,
        vocab_size=1000,
    ),
}


@dataclass(kw_only=True)
class RecipeArguments(ClusteringArguments):
    output_dir: str = field(metadata={"help": "Folder of the finished SpeechLMProcessor."})
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    encoder: str = field(
        default="microsoft/wavlm-large",
        metadata={"help": "Folder or Hub id of a WavLM, HuBERT, wav2vec 2.0 or Whisper whose layer is clustered."},
    )
    layer: int = field(default=23, metadata={"help": "Of its hidden_states; 0 goes into the first layer."})
    tokenizer: str | None = field(
        default=None, metadata={"help": "An audio tokenizer whose codes are the units, instead of clusters."}
    )
    num_clusters: int = field(default=2000, metadata={"help": '"k-means with 2000 clusters"'})
    sample_share: float = field(
        default=100 / 960,
        metadata={"help": '"a subset of 100 hours of data randomly sampled from the training set" of 960'},
    )
    num_passes: int = field(
        default=1,
        metadata={"help": "How often k-means sees all frames; the paper's code does until nothing gets better."},
    )
    vocab_size: int = field(default=6000, metadata={"help": '"6000 subword units"; 0 for the codes as they are.'})
    piece_mode: str = field(
        default="single_script",
        metadata={"help": "How subwords are learned.", "choices": ["single_script", "reference"]},
    )
    speeds: list[float] = field(
        default_factory=lambda: [1.0, 0.9, 1.1],
        metadata={"help": '"the full 960-hour training set with speed perturbation": subwords are learned from these'},
    )


def parse_arguments(arguments: list[str] | None = None) -> RecipeArguments:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments,), PRESETS, arguments)[0]


def load_feature_extractor(encoder: str, model: KMeansTokenizerModel):
    """What the encoder reads, with the mask that keeps an utterance's codes the same in any batch."""
    if model.config.reads_waveforms:
        return AutoFeatureExtractor.from_pretrained(encoder, return_attention_mask=True)
    return StableTokenFeatureExtractor.from_pretrained(encoder, mel_frames_per_token=model.config.mel_frames_per_token)


def fit_tokenizer(recipe: RecipeArguments, speech: Dataset) -> SpeechLMProcessor:
    """Encoder, states of the sample, clusters. One process fits, the others wait."""
    model = KMeansTokenizerModel.from_encoder(recipe.encoder, recipe.layer, recipe.num_clusters)
    feature_extractor = load_feature_extractor(recipe.encoder, model)
    model.to(PartialState().device)
    identity = {"layer": recipe.layer, "encoder": weights_checksum(model.encoder)}
    model.set_centroids(fit_centroids(recipe, speech, model, feature_extractor, identity))
    return SpeechLMProcessor(feature_extractor, model)


def learn_pieces(recipe: RecipeArguments, processor: SpeechLMProcessor, speech: Dataset) -> UnitPieces:
    """Codes of all speech at all speeds, and their subwords. One process learns, the others wait."""
    codes = extract_units(
        speech, processor, recipe.work / "codes", recipe.describe("train"), recipe.speeds, recipe.batch_size
    )
    folder = recipe.work / f"pieces_{recipe.vocab_size}_{recipe.piece_mode}"
    claim_folder(folder, recipe.describe("train") | {"speeds": recipe.speeds, "units": units_checksum(processor)})
    with FileLock(folder / "learning"):
        if not (folder / FILE_NAME).exists():
            units = (row["units"] for row in codes.select_columns("units"))
            pieces = UnitPieces.train(units, recipe.vocab_size, processor.num_speech_units, recipe.piece_mode)
            write_atomically(folder / FILE_NAME, pieces.processor.serialized_model_proto())
    pieces = UnitPieces.load(folder / FILE_NAME)
    if PartialState().is_main_process:
        print(describe_pieces(pieces, codes.select(range(min(len(codes), 1000)))))
    return pieces


def describe_pieces(pieces: UnitPieces, codes: Dataset) -> str:
    """How long utterances are in codes and in pieces, over some of them."""
    lengths = [(len(units), len(pieces.encode(units))) for units in codes["units"]]
    num_codes, num_pieces = np.mean(lengths, axis=0)
    seconds = np.mean(codes["num_samples"]) / 16000
    return (
        f"{len(lengths)} utterances of {seconds:.1f} s have {num_codes:.0f} codes and {num_pieces:.0f} pieces on "
        f"average: {num_codes / seconds:.1f} and {num_pieces / seconds:.1f} a second."
    )


def main(arguments: list[str] | None = None):
    recipe = parse_arguments(arguments)
    state = PartialState()
    speech = recipe.load("train")
    if recipe.tokenizer is None:
        processor = fit_tokenizer(recipe, speech)
    else:
        processor = SpeechLMProcessor.from_pretrained(recipe.tokenizer)
        processor.audio_tokenizer.to(state.device)
    if recipe.vocab_size:
        pieces = learn_pieces(recipe, processor, speech)
        processor = SpeechLMProcessor(processor.feature_extractor, processor.audio_tokenizer, unit_pieces=pieces)
    if state.is_main_process:
        processor.save_pretrained(recipe.output_dir)
        # beside the audio tokenizer, too, which is then one to be measured: recipes/evaluate_stable_token.py
        processor.feature_extractor.save_pretrained(Path(recipe.output_dir, "audio_tokenizer"))
        print(f"{recipe.output_dir} has {processor.num_speech_units} speech units.")


if __name__ == "__main__":
    main()
