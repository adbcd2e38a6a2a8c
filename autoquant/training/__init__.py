"""How is a model trained? Batches, losses, the loop that teacher, search and recovery share."""
