"""The referee: algorithms on tasks at equal compute, tuned alike, with paired tests; ``dlmrl compare``."""
