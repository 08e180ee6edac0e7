"""Jobs on Google Cloud Dataflow: what a machine needs, checked before anything is submitted."""
