"""What the commands do once their options are read, a module a command. Torch, Ray and MLflow are imported here."""
