"""What a person looks at: displays of runs and ablations, tables for the terminal, tables of the documentation."""
