"""What happens beside training: progress, timing, samples, evaluation and checkpoints."""
