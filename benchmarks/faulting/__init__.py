"""Parts of the fault table: faults, the load that runs meanwhile, and their figures."""
