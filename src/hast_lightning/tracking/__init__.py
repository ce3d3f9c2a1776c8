"""Loggers: csv, wandb, TensorBoard, and what they are shown."""
