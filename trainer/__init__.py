"""Acts: builds the model, trains, evaluates, saves. Knows no planner."""
