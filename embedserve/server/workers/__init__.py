"""`--workers=N`: several processes on the same ports, and a supervisor deciding for all workers.

`supervisor` is the parent's life, `worker` a child's. A control channel (`channel`, `messages`) connects the two.
Shared memory (`shared_value`) tells the serving versions at any moment.
"""
