"""SAM-2 with a granularity dial: networks, adapters, trunks, and their files."""
