"""What an encoder is worth: frozen features, linear and kNN probes, and the baselines they stand beside."""
