"""The student as a file: packed checkpoint, ONNX, torch.export program; and running these."""
