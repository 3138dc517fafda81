"""Keeps pictures: the database, the files, the settings inside them."""
