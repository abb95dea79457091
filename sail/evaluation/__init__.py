"""Evaluation: held-out samples, scores and log-probs in; metrics, tables and a report out."""
