"""From labels to rows of residuals and Jacobians: targets, features and their cache, blocks."""
