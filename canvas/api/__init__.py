"""The doors for programs: HTTP routes, and the functions published as Gradio API and MCP tools."""
