"""What is wrong with training data, and what it is: every row is read once, and little of each is kept."""
