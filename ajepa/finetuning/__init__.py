"""Fine-tuning: encoder and a linear head trained together on labelled clips (spec 9). No Ray, no MLflow."""
