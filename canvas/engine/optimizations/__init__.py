"""Techniques that make inference faster, one a module."""
