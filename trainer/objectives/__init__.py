"""What does a step minimise, and on which batches?"""
