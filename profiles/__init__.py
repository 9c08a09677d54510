"""Facts: what hardware there is and what a model is made of, each figure with its source."""
