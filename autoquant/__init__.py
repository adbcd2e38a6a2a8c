"""autoquant: mixed-precision search for BERT-family models under a size budget."""
