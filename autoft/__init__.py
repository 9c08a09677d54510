"""autoft: the best fine-tune of a language model that this machine can really run."""

__version__ = "0.1.0"
