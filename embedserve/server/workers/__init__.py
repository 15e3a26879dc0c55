"""`--workers=N`: several processes on one set of ports, and a supervisor that decides for all of them.

`supervisor` is the parent's life, `worker` a child's; between them are a control channel (`channel`, `messages`) and
shared memory that tells at any moment which version answers (`shared_value`).
"""
