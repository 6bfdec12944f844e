"""
Make HASRD's semantic book, k-means of one layer of a pretrained speech encoder: the second of the paper's stages.

The paper's (section 3: "The k-means model is trained offline on SSL latent representations using 10% of the
train-clean-100 subset"; "layer n_s = 8"), after `recipes/pretrain_best_rq.py`; a few minutes on one GPU:

    accelerate launch recipes/fit_semantic_codebook.py --encoder outputs/best_rq \\
        --dataset ../librispeech/train-clean-100 --output_dir outputs/hasrd_fitted

The Hub's `openslr/librispeech_asr:clean` has train-clean-360 as well. HASRD (HuBERT) instead: `--encoder
facebook/hubert-base-ls960 --layer 9`; of HuBERT the paper names no layer. The mini, on two CPU cores (a minute):

    python recipes/fit_semantic_codebook.py --preset mini --encoder outputs/mini_best_rq \\
        --dataset ../shared/data/an4 --output_dir outputs/mini_hasrd_fitted

`output_dir` becomes a HasrdModel with its feature extractor, which `recipes/train_hasrd.py --model` trains: encoder
and semantic book are there, decoder and acoustic books are random. `--num_clusters 0` makes one without a semantic
book, residual books of the same encoder's layers alone, to compare with. `work/` in it may be removed in the end; a
run that was killed goes on where it stopped.
"""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from accelerate import PartialState
from clustering import ClusteringArguments, fit_centroids
from presets import parse_with_preset
from torch import Tensor
from transformers import AutoFeatureExtractor, FeatureExtractionMixin, set_seed

from clearspeech.modeling.modeling_hasrd import HasrdModel

PRESETS = {
    "paper": {},
    "mini": dict(
        layer=4,  # of six; recipes/reproduce_hasrd.py finds the best
        num_clusters=256,
        sample_share=1.0,
        batch_frames=2000,
        num_passes=5,
        num_inits=3,
        num_acoustic_books=5,
        codebook_size=256,
        decoder_channels=384,
    ),
}


@dataclass(kw_only=True)
class RecipeArguments(ClusteringArguments):
    output_dir: str = field(metadata={"help": "Folder of the HasrdModel."})
    encoder: str = field(metadata={"help": "Folder or Hub id of a BestRQ, HuBERT, wav2vec 2.0 or WavLM."})
    preset: str = field(default="paper", metadata={"help": "Set of defaults.", "choices": list(PRESETS)})
    layer: int = field(default=8, metadata={"help": "n_s, of its hidden_states; 0 goes into the first layer."})
    num_clusters: int = field(
        default=1024, metadata={"help": "Size of the semantic book, which the bitrates make 1024; 0 for none."}
    )
    sample_share: float = field(default=0.1, metadata={"help": '"10% of the train-clean-100 subset"'})
    num_passes: int = field(default=5, metadata={"help": "How often k-means sees all frames, one for each token."})
    num_acoustic_books: int | None = field(
        default=None, metadata={"help": "Of the codec: 9 on a BestRQ, 8 on others when not given."}
    )
    codebook_size: int = field(default=1024, metadata={"help": "Of each acoustic book."})
    decoder_channels: int = field(default=1536, metadata={"help": '"a latent dimension of 1536"'})
    upsampling_ratios: list[int] | None = field(
        default=None,
        metadata={"help": '"strides [8, 8, 4, 2]" for 512 samples a token, 8 5 4 2 for 320 when not given.'},
    )


def parse_arguments(arguments: list[str] | None = None) -> RecipeArguments:
    """Command-line arguments over the preset's defaults over the paper's."""
    return parse_with_preset((RecipeArguments,), PRESETS, arguments)[0]


class SemanticLayer:
    """The layer of a codec that becomes its semantic book, as `extract_features` asks for states."""

    def __init__(self, model: HasrdModel):
        self.model = model
        self.encoder, self.device = model.encoder, model.device
        self.config = SimpleNamespace(layer=model.config.semantic_layer, encoder_config=model.config.encoder_config)

    @torch.no_grad()
    def features(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """States `(batch, tokens, dim)` and their mask; for arguments see `HasrdModel.latents`."""
        states, mask = self.model.latents(**inputs)
        return states[:, :, self.config.layer], mask


def build_model(recipe: RecipeArguments) -> tuple[HasrdModel, FeatureExtractionMixin]:
    """A codec on the encoder, its semantic book still empty, and what the encoder reads."""
    set_seed(recipe.seed)
    model = HasrdModel.from_encoder(
        recipe.encoder,
        semantic_layer=recipe.layer,
        num_semantic_codes=recipe.num_clusters,
        num_acoustic_books=recipe.num_acoustic_books,
        codebook_size=recipe.codebook_size,
        decoder_channels=recipe.decoder_channels,
        upsampling_ratios=recipe.upsampling_ratios,
    ).eval()
    options = dict(return_attention_mask=True) if model.config.reads_waveforms else {}  # many on the Hub say nothing
    return model.to(PartialState().device), AutoFeatureExtractor.from_pretrained(recipe.encoder, **options)


def main(arguments: list[str] | None = None):
    recipe = parse_arguments(arguments)
    model, feature_extractor = build_model(recipe)
    fingerprint = model.encoder_fingerprint()
    if recipe.num_clusters:
        speech = recipe.load("train")
        centroids = fit_centroids(recipe, speech, SemanticLayer(model), feature_extractor, {"states": fingerprint})
        model.set_semantic_codebook(centroids, fingerprint)
    if PartialState().is_main_process:
        model.save_pretrained(recipe.output_dir)
        feature_extractor.save_pretrained(recipe.output_dir)
        print(f"{recipe.output_dir}: {fingerprint}, {model.config.num_books} books, {model.config.bitrate:.2f} kbps.")


if __name__ == "__main__":
    main()
