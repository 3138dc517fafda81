"""Where a request is computed: in this process, in workers, or on other machines."""
