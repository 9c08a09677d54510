"""One TOML file a model."""
