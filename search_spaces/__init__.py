"""What may vary, one file a data set: its space (a KerasTuner HyperModel) and its baselines."""
