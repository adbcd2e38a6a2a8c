"""What was found, and what does it look like? Points and fronts of runs and sweeps, figures, and report.html."""
