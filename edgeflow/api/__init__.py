"""The HTTP API of a PoP: one module per resource, problem documents, pages, and the control process.

What it is: a thin FastAPI surface over the store and the runner. asyncio lives here and nowhere else.
What it is not: a place for decisions; those are in `core` and in the store's scripts.
What must stay true: no endpoint waits inside one of the shared worker threads; every error is a problem document with a code and a hint;
an answer 2xx to a write means it is durable.
"""
