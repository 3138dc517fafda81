"""HTTP, Gradio and MCP APIs."""
