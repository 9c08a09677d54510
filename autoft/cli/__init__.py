"""The command line: a thin face over profiles, planner and trainer, one file a command."""
