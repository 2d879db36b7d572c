"""One training step, the state it advances, what is measured on the way, and checkpoints."""
