"""Hyperparameter search for Keras image classifiers, tracked in MLflow."""

__version__ = "0.1.0"
