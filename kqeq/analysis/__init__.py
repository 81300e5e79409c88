"""What a fitted model says beyond energies: responses, charge-state scans, diagnostics."""
