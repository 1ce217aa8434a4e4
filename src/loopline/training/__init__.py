"""What only stages need: the training loop, export, quantization, evaluation and pictures."""
