"""Hyperparameters by maximal marginal likelihood."""
