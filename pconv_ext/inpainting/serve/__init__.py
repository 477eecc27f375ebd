"""A page with a brush, and the same over HTTP: what ``pconv-ext serve`` starts. Needs FastAPI and uvicorn."""
