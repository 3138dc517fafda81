"""The recipe of the built-in model: from openly licensed drawings to `assets/starter/`."""
