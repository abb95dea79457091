"""What scripts/bench_update and scripts/bench_online are made of; importable as scripts.bench from the root."""
