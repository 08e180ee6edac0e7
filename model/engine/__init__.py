"""The serving engine: cache, scheduler, compiled steps, and the thread that drives them."""
