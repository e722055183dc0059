"""Reading runs and releases: samples, numbers, checks, exports, pages."""
