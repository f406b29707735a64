"""Measurements, side by side with peers: `make bench` runs them and writes bench/results/*.json."""
