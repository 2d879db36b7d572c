"""The jobs: Ray Data, Ray Train, Ray Tune and MLflow around `ajepa`. Each file named after a command is one."""
