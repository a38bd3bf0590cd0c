"""The fault campaigns. After each fault nothing may be lost, duplicated, stale or mixed. Run them with `make faults`."""
