"""Replicas of a run that exchange gradients and agree on what happens next."""
