"""Stored images: database, files and embedded metadata."""
