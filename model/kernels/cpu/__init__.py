"""Fast paths of a CPU that has dot products of bfloat16: products, attention, the cache's order.

Each stands beside the plain form that defines it, in ``quantization``, ``moe`` and ``attention``.
They are C++ that a compiler on this machine makes into a library when it is first needed; without
one, or on another CPU, the plain forms are used.
"""
