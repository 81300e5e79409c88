"""Damped Gauss–Newton with variable projection; knows no chemistry."""
