"""The fault campaigns: after each fault nothing may be lost, duplicated, stale or mixed. Run: `make faults`."""
