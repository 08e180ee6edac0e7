"""Imported by each worker of a distributed runner when it starts, as a Beam plugin."""

from pipeline import preemption

preemption.install(seconds=preemption.WORKER_GRACE_SECONDS)
