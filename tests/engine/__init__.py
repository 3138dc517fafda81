"""Tests of canvas.engine."""
