"""Fast paths of a CPU with AVX-512: a layer in four calls, the head's product, the cache's order.

Each call stands for a stretch of ``transformer.transformer_layer``, which defines what it gives.
They are C++ that a compiler on this machine makes into a library when it is first needed; without
one, or on another CPU, the plain forms are used.
"""
