"""Measures speed, memory and similarity; nothing else imports it."""
