"""What MLflow records of a command."""
