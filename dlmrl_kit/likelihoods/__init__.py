"""Likelihoods: estimators of the log-probability of the selected steps under the current policy, with gradient."""
