"""What a person looks at: consoles, tables, pages."""
