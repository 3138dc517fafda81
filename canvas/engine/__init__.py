"""Diffusers pipelines, and everything that touches torch."""


def configure_process() -> None:
    """Prepare this process: environment variables of the libraries, a quicker import of Gradio, one malloc arena.

    For programs (`app.py`, the command line), before Gradio or torch are imported. A `Studio`
    works without it and changes nothing in its process.
    """
    from canvas.engine.optimizations import malloc
    from canvas.platform import TypeStubBlocker, configure_runtime_env

    configure_runtime_env()
    TypeStubBlocker.install()
    malloc.single_arena()
