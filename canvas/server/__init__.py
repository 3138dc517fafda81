"""The HTTP server: launch, middleware, login, share link."""
