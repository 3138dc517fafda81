"""Jobs: queue, scheduler and the inputs of requests."""
