"""From audio and text to tensors and back: features, corpora, perturbations, pipelines."""
