"""Posterior standard deviations, the part that sparse features miss, and the choice of frames to label."""
