"""The training recipe of the built-in model; the rest of the app does not import it."""
