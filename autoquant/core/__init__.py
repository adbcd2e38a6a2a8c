"""Values that every other room shares; imports nothing else of ours."""
