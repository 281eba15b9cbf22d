"""Reports: one renderer, many doors."""
