"""How do codes become real bytes, and bytes a model again? One safetensors file, nothing pickled."""
