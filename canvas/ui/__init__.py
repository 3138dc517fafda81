"""The page in the browser: one module a tab, over the studio alone."""
