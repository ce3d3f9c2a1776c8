"""What a run runs on: processes, devices, precision, random streams."""
