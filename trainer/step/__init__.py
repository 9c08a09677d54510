"""One training step: its batches and its loss."""
