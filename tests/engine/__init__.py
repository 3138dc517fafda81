"""Tests of the wing that makes pictures."""
