"""A trained encoder in use: waveforms in, embeddings out."""
