"""Jobs, their queue, and the scheduler that gives them to backends."""
