"""The process: its environment, memory peaks, energy, random state and signals."""
