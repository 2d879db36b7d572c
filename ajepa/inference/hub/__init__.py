"""The encoder for Hugging Face transformers: files that `export.py --format transformers` copies beside the weights.
They import torch, numpy and transformers alone, never ajepa; nothing else here imports them."""
