"""The estimator, its file, its configuration, its evaluation."""
