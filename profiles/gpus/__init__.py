"""One TOML file a GPU."""
