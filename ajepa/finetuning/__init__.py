"""Fine-tuning: encoder and a linear head trained together on labelled clips (sec. 8). No Ray, no MLflow."""
