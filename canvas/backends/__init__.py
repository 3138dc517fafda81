"""Backends that run generation tasks: in this process, in workers, or on remote servers."""
