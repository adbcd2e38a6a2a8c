"""Which sizes buy which accuracy? Sweeps over budgets, and taking a point of their fronts."""
