"""The heavy half: torch, ultralytics, export, quantization, MLflow tracking."""
