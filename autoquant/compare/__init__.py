"""Methods x budgets x seeds -> one tidy table, everything but the method the same."""
