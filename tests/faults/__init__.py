"""The fault campaign: what dies, and proof that nothing is lost, doubled, stale or mixed afterwards. Run it with `make faults`."""
