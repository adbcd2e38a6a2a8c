"""Which sizes buy which accuracy? Sweeps over budgets, the front of what they found, pictures and reports of it."""
