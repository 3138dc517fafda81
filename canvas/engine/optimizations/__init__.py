"""Techniques that speed up inference, one per module."""
