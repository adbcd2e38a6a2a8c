"""The relaxed model: every sub-group is a mixture of its bit-widths until the search has decided."""
