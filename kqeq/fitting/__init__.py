"""From labelled structures to a potential: residual blocks, solver, driver."""
