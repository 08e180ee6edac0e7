import hypothesis

# A compile or a busy machine may make one example slow; that is no failure.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")
