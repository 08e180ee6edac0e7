"""One script a peer, run by its own environment's Python: ``SCRIPT REQUEST RESULT``.

REQUEST is a JSON file with ``model`` (a path), ``settings`` (the peer's own) and ``workloads``
(lists of jobs). RESULT, written when all is done, has ``versions``, ``load_seconds`` and ``runs``:
seconds and output tokens of each workload, from the first submission to the last result.
"""
