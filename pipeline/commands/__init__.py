"""The subcommands of ``grok1``, a module each: ``HELP``, ``add_arguments`` and ``run``."""
