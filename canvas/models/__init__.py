"""Models and weights on the Hugging Face Hub and on disk; no torch."""
