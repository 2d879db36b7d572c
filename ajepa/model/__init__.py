"""The method: ViT encoder, predictor, block masks, losses, EMA target encoder and schedules."""
