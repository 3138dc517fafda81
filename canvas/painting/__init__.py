"""Who turns an order into pictures: this process, a worker beside it, or somebody elsewhere."""
