"""Imported by each worker of a distributed runner when it starts, as a Beam plugin."""

from pipeline import preemption

GRACE_SECONDS = 4.0
"""Beam's boot program kills a worker 5 s after it has passed SIGTERM on."""

preemption.install(seconds=GRACE_SECONDS)
