"""The LightningModule, what a checkpoint holds, and callbacks."""
