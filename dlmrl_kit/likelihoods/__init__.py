"""Likelihood estimators: the log-probability of steps under the current policy."""
