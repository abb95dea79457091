"""What scripts/gradient_variance is made of; importable as scripts.variance from the root."""
