"""Datasets and data engines. Everything here produces Documents and knows nothing of the model."""
