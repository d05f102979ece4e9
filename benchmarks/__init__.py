"""Side by side with the peers: `python -m benchmarks.attention`. Public names of regard only."""
