"""Results: one JSON file per measured row, its one reader and its one judge. Needs no torch."""
